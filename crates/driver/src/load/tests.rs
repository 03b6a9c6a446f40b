//! What a load says of a back-end that loses, swaps, changes and adds frames, played by us.

use vionet_raw::Descriptor;

use super::*;
use crate::model::{Device, nodding};

struct Bench {
    port: Port,
    sender: Sender,
    receiver: Receiver,
    /// The device's side of the receive and of the transmit ring.
    device: [Device; 2],
}

impl Bench {
    fn new(sizes: &[u32]) -> Self {
        let options = LoadOptions { sizes: sizes.to_vec(), ..LoadOptions::default() };
        let plan = plan(&options).unwrap();
        let mut port = Port::open(FrontEnd::over(nodding(u64::MAX)).unwrap(), plan).unwrap();
        let device = [port.rx.place(), port.tx.place()];
        let device = device.map(|place| Device::of(&port.memory.space, place));
        let entries = options.queue_size;
        let sender = Sender::new(&mut port, entries, sizes, Writing::Whole, ADDRESSES).unwrap();
        let mut receiver = Receiver::new(Reading::Whole, true, plan.rx_len, sizes);
        receiver.latency = Some(Histogram::default());
        Self { port, sender, receiver, device }
    }

    /// Sends `count` frames; what the device finds behind their headers.
    fn send(&mut self, count: u64) -> Vec<Vec<u8>> {
        self.sender.send(&mut self.port, count, |number| number * 1000).unwrap();
        self.port.flush();
        let [_, tx] = &mut self.device;
        let mut frames = Vec::new();
        while let Some((id, Descriptor { addr, len, .. })) = tx.take() {
            let mut frame = vec![0; len as usize];
            self.port.memory.read(addr, &mut frame).unwrap();
            frames.push(frame.split_off(12));
            tx.put(id.into(), 0);
        }
        tx.publish();
        assert!(self.sender.reclaim(&mut self.port).unwrap());
        frames
    }

    /// The device delivers frames, each in as many buffers as it needs; time 5000.
    fn deliver(&mut self, frames: &[Vec<u8>]) {
        let [rx, _] = &mut self.device;
        for frame in frames {
            let buffers = (frame.len() + 12).div_ceil(2048);
            let mut bytes = vec![0; 12];
            bytes[10] = buffers as u8;
            bytes.extend(frame);
            for piece in bytes.chunks(2048) {
                let (id, descriptor) = rx.take().unwrap();
                self.port.memory.write(descriptor.addr, piece).unwrap();
                rx.put(id.into(), piece.len() as u32);
            }
        }
        rx.publish();
        self.receiver.receive(&mut self.port, u64::MAX, 5000).unwrap();
        self.port.flush();
    }

    fn counts(&self) -> [u64; 4] {
        let Receiver { got, foreign, disorder, damaged, .. } = &self.receiver;
        [got.frames, *foreign, *disorder, *damaged]
    }
}

#[test]
fn an_honest_device_is_told_to_be_one() {
    let mut bench = Bench::new(&[60, 5000]);
    let frames = bench.send(4);
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [60, 5000, 60, 5000]);
    bench.deliver(&frames);
    assert_eq!(bench.counts(), [4, 0, 0, 0]);
    assert_eq!(bench.receiver.got.bytes, 10_120);
    let latency = bench.receiver.latency.take().unwrap();
    assert_eq!((latency.least().as_nanos(), latency.most().as_nanos()), (2000, 5000));
    // Addresses may be swapped on the way.
    let mut frames = bench.send(1);
    frames[0][..12].rotate_left(6);
    bench.deliver(&frames);
    assert_eq!(bench.counts(), [5, 0, 0, 0]);
}

#[test]
fn swapped_doubled_changed_cut_and_added_frames_are_counted() {
    let mut bench = Bench::new(&[100]);
    let mut frames = bench.send(6);
    frames.swap(1, 2);
    bench.deliver(&frames);
    assert_eq!(bench.counts(), [6, 0, 1, 0], "swapped");
    let frames = bench.send(1);
    bench.deliver(&[frames[0].clone(), frames[0].clone()]);
    assert_eq!(bench.counts(), [8, 0, 2, 0], "doubled");
    let mut frames = bench.send(2);
    frames[0][99] ^= 1;
    frames[1].truncate(96);
    bench.deliver(&frames);
    assert_eq!(bench.counts(), [10, 0, 2, 2], "changed and cut");
    bench.deliver(&[vec![0x33; 100]]);
    assert_eq!(bench.counts(), [10, 1, 2, 2], "added");
}

#[test]
fn a_device_that_breaks_a_rule_ends_the_load() {
    for (head, len) in [(1_u8, 11), (0, 100), (2, 100), (1, 4000)] {
        let mut bench = Bench::new(&[100]);
        let [rx, _] = &mut bench.device;
        let (id, descriptor) = rx.take().unwrap();
        let mut header = [0; 12];
        header[10] = head;
        bench.port.memory.write(descriptor.addr, &header).unwrap();
        rx.put(id.into(), len);
        rx.publish();
        let outcome = bench.receiver.receive(&mut bench.port, 1, 0);
        assert!(matches!(outcome, Err(GuestError::Device(_))), "{head} buffers, {len} bytes");
    }
}

#[test]
fn options_that_contradict_themselves_are_refused() {
    let good = LoadOptions::default();
    assert!(check(&good, false).is_ok());
    for bad in [
        LoadOptions { sizes: vec![], ..good.clone() },
        LoadOptions { sizes: vec![64, 31], ..good.clone() },
        LoadOptions { sizes: vec![65_551], ..good.clone() },
        LoadOptions { queue_size: 0, ..good.clone() },
        LoadOptions { queue_size: 100, ..good.clone() },
        LoadOptions { queue_size: 32_769, format: RingFormat::Packed, ..good.clone() },
        LoadOptions { burst: 0, ..good.clone() },
        LoadOptions { rate: Some(0), ..good.clone() },
        LoadOptions { verify: true, ..good.clone() },
        LoadOptions { way: Way::Through, ..good.clone() },
    ] {
        assert!(matches!(check(&bad, false), Err(GuestError::Options(_))), "{bad:?}");
    }
    assert!(plan(&LoadOptions { sizes: vec![65_550], queue_size: 32_768, ..good }).is_err());
}
