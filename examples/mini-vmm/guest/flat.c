/* A guest without a kernel: finds the NIC on PCI, negotiates, sends a frame to itself, and says
 * what it sees. In C, so that this driver shares nothing with the device, not even a compiler.
 *
 *   32-bit protected mode, flat, no paging, no interrupts: what comes is seen in the local APIC's
 *   request register. Everything that it does to the device is a real exit, but for its kicks.
 *
 * (VIRTIO 1.4 §2.7, §3.1, §4.1, §5.1; PCI Local Bus 3.0 §6; Intel SDM 3 §11)
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__asm__(".section .start, \"ax\"\n"
        "    mov $0x80000, %esp\n"
        "    call guest\n"
        "    out %al, $0xf4\n" /* the last word */
        "1:  hlt\n"
        "    jmp 1b\n"
        ".text\n");

/* Ports and registers. */

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "d"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "d"(port)); }
static void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "d"(port)); }
static u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "d"(port));
    return value;
}
/* Takes a millisecond: machine.rs. */
static void wait(void)
{
    u8 value;
    __asm__ volatile("inb $0xf4, %0" : "=a"(value));
}

static u8 load8(u32 at) { return *(volatile u8 *)at; }
static u16 load16(u32 at) { return *(volatile u16 *)at; }
static u32 load32(u32 at) { return *(volatile u32 *)at; }
static void store8(u32 at, u8 value) { *(volatile u8 *)at = value; }
static void store16(u32 at, u16 value) { *(volatile u16 *)at = value; }
static void store32(u32 at, u32 value) { *(volatile u32 *)at = value; }

/* Words on the serial port. */

static void say(const char *text)
{
    while (*text)
        out8(0x3f8, (u8)*text++);
}

static void hex(u32 value, int digits)
{
    while (digits--)
        out8(0x3f8, (u8) "0123456789abcdef"[value >> digits * 4 & 15]);
}

static void decimal(u32 value)
{
    if (value > 9)
        decimal(value / 10);
    out8(0x3f8, (u8)('0' + value % 10));
}

static u8 step;

static void begin(const char *name)
{
    step++;
    say(step < 10 ? "\n " : "\n");
    decimal(step);
    say(" ");
    say(name);
}

/* Ends everything with the number of the step, if this is not so. */
static void must(int is_so, const char *what)
{
    if (is_so)
        return;
    say("\nNOT SO: ");
    say(what);
    say("\n");
    out8(0xf4, step);
}

/* PCI: mechanism #1, bus 0, function 0. */

static u8 nic = 32;

static u32 config(u8 device, u8 at)
{
    out32(0xcf8, 0x80000000u | (u32)device << 11 | (at & 0xfc));
    return in32(0xcfc) >> (at & 3) * 8;
}

static void set_config(u8 at, u32 value)
{
    out32(0xcf8, 0x80000000u | (u32)nic << 11 | at);
    out32(0xcfc, value);
}

static void set_config16(u8 at, u16 value)
{
    out32(0xcf8, 0x80000000u | (u32)nic << 11 | (at & 0xfc));
    out16((u16)(0xcfc | (at & 2)), value);
}

static void find(void)
{
    begin("bus      ");
    for (u8 device = 0; device < 32; device++) {
        u32 id = config(device, 0);
        if (id == 0xffffffff)
            continue;
        if (device)
            say(", ");
        hex(id & 0xffff, 4);
        say(":");
        hex(id >> 16, 4);
        say(" at 00:");
        hex(device, 2);
        if (id == 0x10411af4)
            nic = device;
    }
    must(nic < 32, "a virtio network device is on bus 0");
}

/* Where its structures are. */

static const u32 BAR = 0xd0000000;
static u32 common, kicks, kick_step, isr, device, table, vectors;
static u8 msix;

static void map(void)
{
    begin("region   ");
    must((config(nic, 0x10) & 0xf) == 4, "region 0 is 64 bits of memory");
    set_config(0x10, 0xffffffff);
    u32 len = -(config(nic, 0x10) & ~0xfu);
    set_config(0x10, BAR);
    set_config(0x14, 0);
    set_config16(0x04, 1 << 1 | 1 << 2); /* memory, bus master */
    hex(len, 8);
    say(" bytes, now at ");
    hex(BAR, 8);
}

static void read_capabilities(void)
{
    begin("found    ");
    u8 at = (u8)config(nic, 0x34);
    for (int i = 0; at && i < 16; i++, at = (u8)config(nic, (u8)(at + 1))) {
        u8 id = (u8)config(nic, at);
        if (id == 0x11) { /* MSI-X */
            msix = at;
            vectors = (config(nic, (u8)(at + 2)) & 0x7ff) + 1;
            table = BAR + (config(nic, (u8)(at + 4)) & ~7u);
            continue;
        }
        u8 kind = (u8)config(nic, (u8)(at + 3));
        if (id != 0x09 || kind < 1 || kind > 4)
            continue;
        must((u8)config(nic, (u8)(at + 4)) == 0, "the structure is in region 0");
        u32 place = BAR + config(nic, (u8)(at + 8));
        switch (kind) {
        case 1: common = place, say("common "); break;
        case 2: kicks = place, kick_step = config(nic, (u8)(at + 16)), say("kicks "); break;
        case 3: isr = place, say("isr "); break;
        case 4: device = place, say("device "); break;
        }
        say("+");
        hex(place - BAR, 4);
        say(", ");
    }
    must(common && kicks && isr && device, "all four structures are named");
    must(table && vectors >= 3, "there are vectors for two queues and the configuration");
    decimal(vectors);
    say(" vectors +");
    hex(table - BAR, 4);
}

/* Fields of the common configuration. */
enum {
    FEATURE_SELECT = 0x00, FEATURE = 0x04, TAKEN_SELECT = 0x08, TAKEN = 0x0c, CONFIG_VECTOR = 0x10,
    QUEUES = 0x12, STATUS = 0x14, SELECT = 0x16, SIZE = 0x18, VECTOR = 0x1a, ENABLE = 0x1c,
    NOTIFY_OFF = 0x1e, DESCRIPTORS = 0x20, DRIVER_AREA = 0x28, DEVICE_AREA = 0x30
};
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
static const u32 MAC = 1u << 5, VERSION_1 = 1u << 0 /* of the upper word */;

static void negotiate(void)
{
    begin("features ");
    store8(common + STATUS, 0);
    for (int i = 0; load8(common + STATUS) && i < 2000; i++)
        wait();
    must(load8(common + STATUS) == 0, "a reset ends");
    store8(common + STATUS, ACKNOWLEDGE);
    store8(common + STATUS, ACKNOWLEDGE | DRIVER);
    u32 offered[2];
    for (u32 word = 0; word < 2; word++) {
        store32(common + FEATURE_SELECT, word);
        offered[word] = load32(common + FEATURE);
    }
    hex(offered[1], 8);
    hex(offered[0], 8);
    must(offered[1] & VERSION_1 && offered[0] & MAC, "VERSION_1 and MAC are offered");
    store32(common + TAKEN_SELECT, 0);
    store32(common + TAKEN, MAC);
    store32(common + TAKEN_SELECT, 1);
    store32(common + TAKEN, VERSION_1);
    store8(common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    must(load8(common + STATUS) & FEATURES_OK, "the device agrees to VERSION_1 and MAC");
    say(" offered, VERSION_1 and MAC agreed");
}

static u8 own[6];

static void read_address(void)
{
    begin("address  ");
    for (int i = 0; i < 6; i++) {
        own[i] = load8(device + (u32)i);
        if (i)
            say(":");
        hex(own[i], 2);
    }
}

/* Split queues of 8 (VIRTIO 1.4 §2.7). The fields `event` are parts of the rings, also where nobody
 * has agreed to use them. */
enum { LEN = 8 };
struct descriptor { u64 at; u32 len; u16 flags, next; };
struct queue {
    struct descriptor descriptors[LEN] __attribute__((aligned(16)));
    volatile struct { u16 flags, index, ring[LEN], event; } avail __attribute__((aligned(2)));
    volatile struct {
        u16 flags, index;
        struct { u32 id, len; } ring[LEN];
        u16 event;
    } used __attribute__((aligned(4)));
    u32 doorbell;
};
static struct queue rx, tx;

static void set_up(u16 index, struct queue *queue)
{
    store16(common + SELECT, index);
    must(load16(common + SIZE) >= LEN, "the queue is there");
    store16(common + SIZE, LEN);
    store32(common + DESCRIPTORS, (u32)queue->descriptors);
    store32(common + DESCRIPTORS + 4, 0);
    store32(common + DRIVER_AREA, (u32)&queue->avail);
    store32(common + DRIVER_AREA + 4, 0);
    store32(common + DEVICE_AREA, (u32)&queue->used);
    store32(common + DEVICE_AREA + 4, 0);
    store16(common + VECTOR, index);
    must(load16(common + VECTOR) == index, "the queue has a vector");
    queue->doorbell = kicks + load16(common + NOTIFY_OFF) * kick_step;
    store16(common + ENABLE, 1);
}

/* Messages go to the local APIC, which keeps them: interrupts are off. */
enum { FIRST = 0x41, LINE = 0x51 };
static const u32 LOCAL_APIC = 0xfee00000, IO_APIC = 0xfec00000;

static int requested(u8 vector)
{
    for (int i = 0; i < 2000; i++, wait())
        if (load32(LOCAL_APIC + 0x200 + vector / 32 * 16) >> vector % 32 & 1)
            return 1;
    return 0;
}

static void set_up_queues(void)
{
    begin("queues   ");
    decimal(load16(common + QUEUES));
    say(", of which receive and transmit get 8 entries");
    set_config16((u8)(msix + 2), 1 << 15);
    for (u32 vector = 0; vector < 2; vector++) {
        u32 entry = table + vector * 16;
        store32(entry, LOCAL_APIC);
        store32(entry + 4, 0);
        store32(entry + 8, FIRST + vector);
        store32(entry + 12, 0);
    }
    store32(LOCAL_APIC + 0xf0, 0x1ff); /* switched on */
    store16(common + CONFIG_VECTOR, 0xffff);
    set_up(0, &rx);
    set_up(1, &tx);
    store8(common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/* A frame with its virtio header; no checksum, no segments: zeros. */
enum { HEADER = 12, FRAME = 60 };
static u8 sent[HEADER + FRAME], got[2048];

static void post(struct queue *queue, u8 *buffer, u32 len, u16 flags)
{
    u16 index = queue->avail.index;
    queue->descriptors[index % LEN] = (struct descriptor){(u32)buffer, len, flags, 0};
    queue->avail.ring[index % LEN] = index % LEN;
    __asm__ volatile("" ::: "memory"); /* x86 keeps stores in order */
    queue->avail.index = (u16)(index + 1);
    __asm__ volatile("lock orl $0, (%%esp)" ::: "memory"); /* before it looks whether to kick */
    if (!(queue->used.flags & 1))
        store16(queue->doorbell, queue == &tx);
}

static int is_used(struct queue *queue)
{
    for (int i = 0; i < 2000; i++, wait())
        if (queue->used.index == queue->avail.index)
            return 1;
    return 0;
}

static void round_trip(u8 fill)
{
    for (u32 i = 0; i < FRAME; i++)
        sent[HEADER + i] = i < 6 ? 0xff : i < 12 ? own[i - 6] : i == 12 ? 0x88 : i == 13 ? 0xb5 : fill;
    post(&rx, got, sizeof got, 2);
    post(&tx, sent, sizeof sent, 0);
    must(is_used(&tx), "the frame is sent");
    must(is_used(&rx), "the frame comes back");
    u32 len = rx.used.ring[(u16)(rx.used.index - 1) % LEN].len;
    must(len == HEADER + FRAME, "all of it comes back");
    for (u32 i = HEADER; i < HEADER + FRAME; i++)
        must(got[i] == sent[i], "as it was sent");
}

static void by_messages(void)
{
    begin("MSI-X    ");
    round_trip(0x5a);
    must(requested(FIRST) && requested(FIRST + 1), "both queues have sent their messages");
    must(load8(isr) == 0, "which the ISR status knows nothing of");
    say("a frame of 60 bytes went out and came back; both vectors have interrupted");
}

static void by_line(void)
{
    begin("line     ");
    /* Pin 16 of the IO-APIC: level, active low, not masked, to processor 0. */
    store32(IO_APIC, 0x10 + 16 * 2 + 1);
    store32(IO_APIC + 0x10, 0);
    store32(IO_APIC, 0x10 + 16 * 2);
    store32(IO_APIC + 0x10, LINE | 1 << 13 | 1 << 15);
    set_config16((u8)(msix + 2), 0);
    round_trip(0xa5);
    must(requested(LINE), "the line is raised");
    must((config(nic, 0x06) & 1 << 3) != 0, "and shows in the status of PCI");
    must(load8(isr) == 1, "for a queue, says the ISR status");
    must(load8(isr) == 0 && (config(nic, 0x06) & 1 << 3) == 0, "reading it lowers the line");
    say("another one, without MSI-X: the line was raised, and lowered by reading the ISR status");
}

static void reset(void)
{
    begin("reset    ");
    store8(common + STATUS, 0);
    for (int i = 0; load8(common + STATUS) && i < 2000; i++)
        wait();
    must(load8(common + STATUS) == 0, "a reset ends");
    store16(common + SELECT, 0);
    must(load16(common + ENABLE) == 0, "no queue is enabled after it");
    say("the device has let go of everything");
}

__attribute__((used)) u8 guest(void)
{
    say("flat guest: 32 bits, no kernel, no interrupts");
    find();
    map();
    read_capabilities();
    negotiate();
    read_address();
    set_up_queues();
    by_messages();
    by_line();
    reset();
    say("\n");
    return 0;
}
