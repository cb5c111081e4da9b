//! Commands that come back from the broker, to devices that are connected here.
//!
//! A command is acknowledged to the broker when the device's home has answered, whatever the answer; so as many are under
//! way as there are acknowledgements outstanding, which the Receive Maximum bounds. What came at QoS 0 beyond that is dropped
//! and counted. Where the command names a response topic, the outcome is published there.

use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::lane::Lane;
use crate::config::TopicTemplate;
use crate::link::{Downlink, Outcome};
use crate::sink::Order;
use crate::sink::run::Run;

/// Commands under way at a time: the Receive Maximum that the broker is told.
pub(super) const COMMANDS_MAX: usize = 64;
/// The longest that one is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// As over the API.
const TOPIC_BYTES_MAX: usize = 255;
const PAYLOAD_BYTES_MAX: usize = 65_535;

/// A command that has come to its end.
pub(super) struct Done {
    life: u64,
    publish: Publish,
    outcome: Result<Outcome, &'static str>,
}

/// Those under way.
#[derive(Default)]
pub(super) struct Commands {
    under_way: JoinSet<Done>,
}

impl Commands {
    pub(super) fn begin(&mut self, run: &Run, template: &TopicTemplate, life: u64, publish: Publish) {
        if self.under_way.len() >= 2 * COMMANDS_MAX {
            // At QoS 1 the broker keeps to the Receive Maximum; those of an earlier connection may still be under way.
            run.shared.commands_failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return;
        }
        let order = order(template, &publish);
        let devices = run.devices.clone();
        self.under_way.spawn(async move {
            let outcome = match order {
                Err(why) => Err(why),
                Ok((device, downlink)) => {
                    let (answer, answered) = oneshot::channel();
                    let asked = async {
                        devices.send(Order { device, downlink, answer }).await.ok()?;
                        answered.await.ok()
                    };
                    match tokio::time::timeout(ANSWER_MAX, asked).await {
                        Ok(Some(outcome)) => Ok(outcome),
                        _ => Err("unanswered"),
                    }
                }
            };
            Done { life, publish, outcome }
        });
    }

    /// The next that has come to its end; `None` when none is under way.
    pub(super) async fn next(&mut self) -> Option<Done> {
        self.under_way.join_next().await?.ok()
    }
}

impl Done {
    /// Counts it, acknowledges it, and answers if that was asked for.
    pub(super) fn finish(self, run: &Run, lane: &Lane) {
        let Self { life, publish, outcome } = self;
        let was_taken = matches!(outcome, Ok(Outcome::Delivered | Outcome::Acknowledged));
        let counter = if was_taken { &run.shared.commands } else { &run.shared.commands_failed };
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // One of an earlier connection comes again through this one.
        let Some(client) = lane.client().filter(|_| lane.life() == life) else { return };
        let response = publish.properties.as_ref().and_then(|properties| properties.response_topic.clone());
        if let Some(topic) = response {
            let correlation_data =
                publish.properties.as_ref().and_then(|properties| properties.correlation_data.clone());
            let properties = PublishProperties { correlation_data, ..PublishProperties::default() };
            let body = format!("{{\"outcome\":\"{}\"}}", in_words(outcome));
            // Whoever asked and hears nothing asks again.
            let _ = client.try_publish_with_properties(topic, QoS::AtMostOnce, false, body, properties);
        }
        // What cannot be acknowledged now comes again.
        let _ = client.try_ack(&publish);
    }
}

fn order(template: &TopicTemplate, publish: &Publish) -> Result<(Box<str>, Downlink), &'static str> {
    let topic = std::str::from_utf8(&publish.topic).map_err(|_| "no_device")?;
    let (device, topic) = template.read(topic).ok_or("no_device")?;
    if topic.len() > TOPIC_BYTES_MAX || topic.contains(char::is_control) || publish.payload.len() > PAYLOAD_BYTES_MAX {
        return Err("too_large");
    }
    Ok((device.into(), Downlink { topic: topic.into(), payload: publish.payload.clone() }))
}

fn in_words(outcome: Result<Outcome, &'static str>) -> &'static str {
    match outcome {
        Ok(Outcome::Delivered) => "delivered",
        Ok(Outcome::Acknowledged) => "acknowledged",
        Ok(Outcome::Offline) => "device_offline",
        Ok(Outcome::Unacknowledged) => "unacknowledged",
        Ok(Outcome::Refused(_)) => "refused",
        Err(why) => why,
    }
}
