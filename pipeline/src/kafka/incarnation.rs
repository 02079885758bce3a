//! Which of an instance's processes is the latest. An instance has one process at a time; a frozen or cut off one may
//! not know yet that it has a successor.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rdkafka::{ClientContext, client::Client, error::KafkaResult};

use super::raw_admin;

static BEGAN_MS: LazyLock<u128> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis());

/// The client id of a member of the group: who it is, and when its process began.
pub fn client_id(transactional_id: &str) -> String {
    format!("{transactional_id}@{}", *BEGAN_MS)
}

/// Whether a process that began later is a member of `group` in this one's place.
///
/// # Errors
/// There is no answer within `timeout`, or the group may not be described.
pub fn is_replaced<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    transactional_id: &str,
    timeout: Duration,
) -> KafkaResult<bool> {
    let group = raw_admin::group(client, group, timeout)?;
    Ok(group.members.iter().any(|member| began(member, transactional_id).is_some_and(|began| began > *BEGAN_MS)))
}

/// `None` if the member is somebody else.
fn began(client_id: &str, transactional_id: &str) -> Option<u128> {
    client_id.strip_prefix(transactional_id)?.strip_prefix('@')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_knows_its_own_processes() {
        assert_eq!(began(&client_id("group-one"), "group-one"), Some(*BEGAN_MS));
        assert_eq!(began("group-one@17", "group-one"), Some(17));
        for other in ["group-one-decode@17", "group-on@17", "group-one@", "group-one", "rdkafka"] {
            assert_eq!(began(other, "group-one"), None, "{other}");
        }
    }
}
