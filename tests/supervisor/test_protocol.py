"""PROTOCOL is raised whenever the messages of supervisors and processes have changed."""

from __future__ import annotations

from dataclasses import fields

import msgspec

from smtpd_fork.fleet.auth_attempts import AuthAttempt
from smtpd_fork.fleet.denial_message import Changes, DenialAnswer, ReceivedDenial, SentDenial
from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.status import FleetStatus
from smtpd_fork.fleet.sync import Answer, Sync
from smtpd_fork.fleet.view import NodeEntry, View
from smtpd_fork.gate import Entry
from smtpd_fork.observe.sink_state import SinkState
from smtpd_fork.observe.snapshot import Snapshot
from smtpd_fork.supervisor.other_supervisor import PROTOCOL

STRUCTURES = (
    Answer,
    AuthAttempt,
    Changes,
    DenialAnswer,
    FleetStatus,
    ReceivedDenial,
    NodeEntry,
    SinkState,
    Sync,
    SentDenial,
    View,
)
DATACLASSES = (Entry, Snapshot)

EXCHANGED = {
    1: """\
Answer: fresh nodes slots sessions waiting denials verdicts
AuthAttempt: attempt most period key
Changes: after created next_page add remove
DenialAnswer: version created complete more last full page
FleetStatus: state nodes sessions limit slots free round_trip down_since down reason \
outcomes episodes
ReceivedDenial: network text by node since left
NodeEntry: node lease slots sessions waits about
SinkState: name replies average connections busy waiting down_since down reason
Sync: node lease keep limit sessions want survey waits leaves about counts clients
SentDenial: network text by node since age left only_new
View: living nodes held ahead
Entry: id since peer sender key exempt seconds listener phase tls messages helo
Snapshot: at uptime state limit phases stats messages rejections denied minutes oldest \
clients top queues lag zones sinks filters fleet
Ledger: ends slots sessions about counts [{}, [], [{}, 0, 0, 0], [{}, {}]]
"""
}
"""By protocol: the messages of a process to a supervisor that may have another version."""


def ledger() -> str:
    """Return the ledger of one node that a supervisor hands over."""
    some = Ledger()
    some.sync([], Sync("a", 1, 1, 0, 0, 0), 0)
    nodes, *others = msgspec.msgpack.decode(some.snapshot())
    return f"Ledger: {' '.join(nodes['a'])} {others}"


def test_the_messages_are_those_of_the_protocol() -> None:
    """If this fails, raise PROTOCOL and add the new messages to EXCHANGED."""
    names = [f"{each.__name__}: {' '.join(each.__struct_fields__)}" for each in STRUCTURES]
    names += [f"{e.__name__}: {' '.join(field.name for field in fields(e))}" for e in DATACLASSES]
    assert "\n".join([*names, ledger(), ""]) == EXCHANGED[PROTOCOL]
