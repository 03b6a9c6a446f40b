//! What bytes are a state.

use super::*;

#[test]
fn the_sum_is_that_of_ethernet() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}
