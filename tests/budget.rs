//! The memory budget counts with constants, because configuration knows no other module: here they meet the types.

use pulsegate::commands::{BYTES_MAX, KNOWN_BYTES, KNOWN_MAX};
use pulsegate::config::Store;
use pulsegate::config::budget::{
    ADDRESS_BYTES, ADDRESSES, COMMAND_DEVICE_BYTES, COMMAND_DEVICES, CONNECTION_BYTES, COUNTED_BYTES,
    INBOX_ENTRY_BYTES, UPLINK_ENTRY_BYTES,
};
use pulsegate::connection::Connection;
use pulsegate::link::{ADDRESS_ENTRIES, ADDRESS_ENTRY_BYTES, Counted, WorkerCommand, WorkerEvent};

/// What a bounded channel keeps beside each entry.
const STAMP_BYTES: u64 = 8;

#[test]
fn a_connection_is_as_large_as_the_budget_says() {
    assert_eq!(size_of::<Connection>() as u64, CONNECTION_BYTES);
}

#[test]
fn queue_entries_are_as_large_as_the_budget_says() {
    let (inbox, uplink) =
        (size_of::<WorkerCommand>() as u64 + STAMP_BYTES, size_of::<WorkerEvent>() as u64 + STAMP_BYTES);
    assert!(inbox <= INBOX_ENTRY_BYTES && inbox * 2 > INBOX_ENTRY_BYTES, "{inbox}");
    assert!(uplink <= UPLINK_ENTRY_BYTES && uplink * 2 > UPLINK_ENTRY_BYTES, "{uplink}");
}

#[test]
fn the_table_of_addresses_is_as_large_as_the_budget_says() {
    assert_eq!((ADDRESS_ENTRIES as u64, ADDRESS_ENTRY_BYTES as u64), (ADDRESSES, ADDRESS_BYTES));
    assert_eq!(size_of::<Counted>() as u64, COUNTED_BYTES);
}

#[test]
fn commands_that_wait_are_bounded_as_the_budget_and_the_configuration_say() {
    assert_eq!((KNOWN_MAX as u64, KNOWN_BYTES as u64), (COMMAND_DEVICES, COMMAND_DEVICE_BYTES));
    assert_eq!(Store::default().commands_bytes, BYTES_MAX);
}
