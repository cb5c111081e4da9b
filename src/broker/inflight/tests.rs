//! What is in flight, step by step.

use bytes::Bytes;

use super::*;
use crate::time::Tick;

fn delivery(qos: QoS, request: u64) -> Delivery {
    let publication = Publication::plain("t", Bytes::from_static(b"12345"), qos);
    Delivery {
        publication: Arc::new(publication),
        qos,
        retain: false,
        identifiers: Identifiers::None,
        request,
        group: None,
        tried: 0,
        token: NOTHING,
        number: 0,
    }
}

#[test]
fn qos_2_out_is_released_once_and_a_request_is_answered_by_the_first_word() {
    let mut inflight = Inflight::default();
    inflight.begin(7, delivery(QoS::ExactlyOnce, 99));
    assert_eq!(inflight.handle_pubrec(7, false), Ok(Some(99)));
    assert_eq!(inflight.handle_pubrec(7, false), Ok(Some(0)));
    assert_eq!((inflight.handle_pubcomp(7), inflight.handle_pubcomp(7)), (Ok(true), Ok(false)));
    assert!(inflight.is_empty());
    inflight.begin(8, delivery(QoS::ExactlyOnce, 0));
    assert_eq!(inflight.handle_pubrec(8, true), Ok(Some(0)));
    assert!(inflight.is_empty());
}

#[test]
fn an_acknowledgement_that_a_message_does_not_wait_for_is_wrong() {
    let mut inflight = Inflight::default();
    inflight.begin(1, delivery(QoS::AtLeastOnce, 0));
    inflight.begin(2, delivery(QoS::ExactlyOnce, 0));
    assert_eq!((inflight.handle_pubrec(1, false), inflight.handle_pubcomp(1)), (Err(WrongAck), Err(WrongAck)));
    assert_eq!((inflight.handle_puback(2), inflight.handle_pubcomp(2)), (Err(WrongAck), Err(WrongAck)));
    assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(0)));
    assert_eq!((inflight.handle_puback(2), inflight.handle_pubrec(2, true)), (Err(WrongAck), Err(WrongAck)));
    assert_eq!((inflight.handle_puback(9), inflight.handle_pubrec(9, false)), (Ok(None), Ok(None)), "late, not wrong");
    inflight.receive(1, QoS::AtLeastOnce, Receiving::Waiting(1));
    inflight.receive(2, QoS::ExactlyOnce, Receiving::Waiting(2));
    assert_eq!((inflight.handle_pubrel(1), inflight.handle_pubrel(2)), (Err(WrongAck), Err(WrongAck)));
    inflight.settle(1, 1, Reason::SUCCESS);
    inflight.settle(2, 2, Reason::SUCCESS);
    assert_eq!(inflight.handle_pubrel(2), Err(WrongAck), "PUBREC has not been said");
    while inflight.next_answer().is_some() {}
    assert_eq!((inflight.handle_pubrel(1), inflight.handle_pubrel(2)), (Ok(false), Ok(true)));
}

#[test]
fn after_a_reconnect_everything_goes_again_in_its_order() {
    let mut inflight = Inflight::default();
    for packet in 1..=3 {
        inflight.begin(packet, delivery(QoS::ExactlyOnce, u64::from(packet)));
    }
    assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(2)));
    let mut released = Released::default();
    inflight.disconnect(&mut released);
    assert_eq!(released.requests, [1, 3]);
    assert!(!inflight.may_send(10), "older messages come first");
    let mut order = Vec::new();
    while let Some(outbound) = inflight.next_to_resend() {
        order.push((outbound.packet, matches!(outbound.state, Sending::Released)));
        inflight.resent();
    }
    assert_eq!(order, [(1, false), (2, true), (3, false)]);
    assert!(inflight.may_send(10) && !inflight.may_send(3));
    inflight.check_invariants(false);
}

#[test]
fn what_a_former_connection_sent_may_be_acknowledged_before_it_comes_again() {
    let mut inflight = Inflight::default();
    for packet in 1..=5 {
        inflight.begin(packet, delivery(if packet == 1 { QoS::AtLeastOnce } else { QoS::ExactlyOnce }, 0));
    }
    assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(0)));
    inflight.disconnect(&mut Released::default());
    assert_eq!(inflight.handle_puback(1), Ok(Some(0)));
    assert_eq!(inflight.handle_pubcomp(2), Ok(true));
    assert_eq!(inflight.handle_pubrec(4, false), Ok(Some(0)));
    inflight.check_invariants(false);
    let mut again = Vec::new();
    while let Some(outbound) = inflight.next_to_resend() {
        again.push(outbound.packet);
        inflight.resent();
    }
    assert_eq!(again, [3, 5], "PUBREL of 4 was said");
    assert_eq!(inflight.handle_pubcomp(4), Ok(true));
    inflight.check_invariants(false);
}

/// [v5 4.9]
#[test]
fn what_counts_against_the_receive_maximum_came_on_this_connection() {
    let mut inflight = Inflight::default();
    for packet in 1..=3 {
        inflight.receive(packet, QoS::ExactlyOnce, Receiving::Settled(Reason::SUCCESS));
        assert!(inflight.next_answer().is_some());
    }
    assert_eq!(inflight.received(), 3);
    inflight.disconnect(&mut Released::default());
    assert_eq!(inflight.received(), 0);
    assert!(inflight.receive_again(2, QoS::ExactlyOnce) && !inflight.receive_again(2, QoS::ExactlyOnce));
    assert_eq!(inflight.received(), 1);
    assert_eq!((inflight.handle_pubrel(1), inflight.received()), (Ok(true), 1), "1 was of the last connection");
    assert_eq!((inflight.handle_pubrel(2), inflight.received()), (Ok(true), 0));
    inflight.check_invariants(false);
}

#[test]
fn answers_keep_the_order_of_what_they_answer() {
    let mut inflight = Inflight::default();
    for (packet, qos) in [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce), (3, QoS::AtLeastOnce)] {
        inflight.receive(packet, qos, Receiving::Waiting(packet.into()));
    }
    assert!(inflight.settle(3, 3, Reason::SUCCESS) && inflight.settle(2, 2, Reason::SUCCESS));
    assert_eq!(inflight.next_answer(), None);
    assert!(!inflight.settle(1, 9, Reason::SUCCESS), "of another message under this number");
    assert!(inflight.settle(1, 1, Reason::QUOTA_EXCEEDED));
    assert_eq!(
        inflight.next_answer(),
        Some(Answer { packet: 1, qos: QoS::AtLeastOnce, reason: Reason::QUOTA_EXCEEDED })
    );
    assert_eq!(inflight.next_answer(), Some(Answer { packet: 2, qos: QoS::ExactlyOnce, reason: Reason::SUCCESS }));
    assert_eq!(inflight.next_answer(), Some(Answer { packet: 3, qos: QoS::AtLeastOnce, reason: Reason::SUCCESS }));
    assert_eq!(inflight.next_answer(), None);
    assert!(inflight.is_answered(2) && !inflight.is_answered(1));
    assert_eq!((inflight.handle_pubrel(2), inflight.handle_pubrel(2)), (Ok(true), Ok(false)));
    assert!(inflight.is_empty());
}

#[test]
fn what_was_taken_before_the_connection_ended_is_not_taken_again() {
    let mut inflight = Inflight::default();
    for (packet, qos) in [(1, QoS::ExactlyOnce), (2, QoS::ExactlyOnce), (3, QoS::AtLeastOnce)] {
        inflight.receive(packet, qos, Receiving::Waiting(packet.into()));
    }
    inflight.settle(2, 2, Reason::SUCCESS);
    inflight.disconnect(&mut Released::default());
    assert!(
        inflight.is_unanswered(1, QoS::ExactlyOnce)
            && inflight.is_answered(2)
            && !inflight.is_unanswered(3, QoS::AtLeastOnce)
    );
    // The device is back, and has not said it again: it is answered when it does, and once.
    inflight.settle(1, 1, Reason::SUCCESS);
    assert_eq!(inflight.next_answer(), None);
    assert!(inflight.is_answered(1) && inflight.receive_again(1, QoS::ExactlyOnce));
    inflight.check_invariants(true);
}

fn bound(messages: usize, bytes: usize) -> QueueBound {
    QueueBound { messages, bytes, room: usize::MAX, stored: None, goes_on: true }
}

#[test]
fn the_queue_is_bounded_by_messages_and_by_bytes() {
    let mut inflight = Inflight::default();
    assert!(inflight.enqueue(delivery(QoS::AtLeastOnce, 0), &bound(2, 100), true).is_ok());
    assert!(inflight.enqueue(delivery(QoS::AtMostOnce, 0), &bound(2, 11), true).is_err());
    assert!(inflight.enqueue(delivery(QoS::AtMostOnce, 0), &bound(2, 12), true).is_ok());
    assert!(
        inflight.enqueue(delivery(QoS::AtLeastOnce, 0), &bound(2, 100), true).is_err(),
        "nobody waits to hear of it"
    );
    assert_eq!(inflight.queued(), (2, 12));
    inflight.disconnect(&mut Released::default());
    assert_eq!(inflight.queued(), (1, 6));
    assert!(inflight.dequeue().is_some() && inflight.is_empty());
}

fn settled(token: Token) -> Delivery {
    Delivery { token, ..delivery(QoS::AtLeastOnce, 0) }
}

#[test]
fn publishers_wait_for_a_device_that_takes_what_it_is_sent() {
    let (mut inflight, bound) = (Inflight::default(), bound(2, 100));
    assert_eq!(inflight.enqueue(settled(1), &bound, true).unwrap(), Enqueued::Kept(1));
    assert_eq!(inflight.enqueue(settled(2), &bound, true).unwrap(), Enqueued::Kept(2));
    assert_eq!(inflight.enqueue(settled(3), &bound, true).unwrap(), Enqueued::FirstWaits);
    inflight.begin_pace(Tick(0));
    assert_eq!(inflight.enqueue(settled(4), &bound, true).unwrap(), Enqueued::Waits);
    assert!(inflight.enqueue(settled(5), &bound, false).is_err());
    let mut tokens = Vec::new();
    assert!(inflight.dequeue().is_some());
    inflight.admit_waiting(&bound, &mut tokens);
    assert_eq!((tokens.as_slice(), inflight.queued()), (&[3][..], (2, 12)));
    inflight.check_invariants(true);
    assert_eq!(inflight.pace().unwrap().taken, 1);
    // It stalls: nobody waits for it until it has caught up.
    let mut stalled = Released::default();
    inflight.drop_waiting(&mut stalled);
    assert_eq!((stalled.tokens.as_slice(), stalled.dropped), (&[4][..], 1));
    assert!(inflight.enqueue(settled(6), &bound, true).is_err());
    assert!(inflight.dequeue().is_some());
    inflight.admit_waiting(&bound, &mut tokens);
    assert_eq!(inflight.enqueue(settled(7), &bound, true).unwrap(), Enqueued::Kept(7));
    assert!(inflight.enqueue(settled(8), &bound, true).is_err(), "it has not caught up");
    // Nor does it by coming again.
    inflight.disconnect(&mut Released::default());
    inflight.check_invariants(false);
    assert!(inflight.enqueue(settled(9), &bound, true).is_err());
    while inflight.dequeue().is_some() {
        inflight.admit_waiting(&bound, &mut tokens);
    }
    assert_eq!(inflight.enqueue(settled(10), &bound, true).unwrap(), Enqueued::Kept(10));
    assert_eq!(inflight.enqueue(settled(11), &bound, true).unwrap(), Enqueued::Kept(11));
    assert_eq!(inflight.enqueue(settled(12), &bound, true).unwrap(), Enqueued::FirstWaits);
    let mut released = Released::default();
    inflight.disconnect(&mut released);
    assert_eq!((released.tokens.as_slice(), released.dropped), (&[12][..], 1));
    inflight.check_invariants(false);
}

/// Whatever becomes of what is lent, it is known how many there are.
#[test]
fn what_is_lent_is_counted_wherever_it_lies() {
    let lent = |qos, request| Delivery { group: Some("$share/g/t".into()), ..delivery(qos, request) };
    let (mut inflight, bound) = (Inflight::default(), bound(3, 100));
    let holds = |inflight: &Inflight, count: u32| {
        inflight.check_invariants(true);
        assert_eq!(inflight.lent(), count);
    };
    inflight.begin(1, lent(QoS::AtLeastOnce, 71));
    inflight.begin(2, lent(QoS::ExactlyOnce, 72));
    inflight.begin(3, lent(QoS::ExactlyOnce, 73));
    inflight.begin(4, lent(QoS::AtLeastOnce, 0));
    inflight.begin(5, delivery(QoS::AtLeastOnce, 75));
    holds(&inflight, 3);
    for request in [76, 77, 0] {
        assert!(inflight.enqueue(lent(QoS::AtLeastOnce, request), &bound, true).is_ok());
    }
    holds(&inflight, 5);
    let waits = Delivery { token: 9, ..lent(QoS::AtLeastOnce, 78) };
    assert_eq!(inflight.enqueue(waits, &bound, true).unwrap(), Enqueued::FirstWaits);
    inflight.begin_pace(Tick(0));
    holds(&inflight, 6);
    assert_eq!(inflight.handle_puback(1), Ok(Some(71)));
    assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(72)));
    holds(&inflight, 4);
    let taken = inflight.dequeue().unwrap();
    holds(&inflight, 3);
    inflight.put_back(taken);
    let taken = inflight.dequeue().unwrap();
    inflight.begin_later(6, taken, 1);
    holds(&inflight, 4);
    assert_eq!(inflight.give_up().map(|given_up| given_up.request), Some(76));
    inflight.drop_waiting(&mut Released::default());
    holds(&inflight, 2);
    let mut released = Released::default();
    inflight.disconnect(&mut released);
    assert_eq!((inflight.lent(), released.kept_requests.as_slice()), (0, &[73][..]));
    inflight.check_invariants(false);
}
