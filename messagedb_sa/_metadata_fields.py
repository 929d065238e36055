"""The fields of a message's metadata that clients of Message DB share. The names are Eventide's."""

from __future__ import annotations

CORRELATION = "correlationStreamName"
"""The stream that started the work to which the message belongs. Message DB indexes its category."""

CAUSATION_STREAM = "causationMessageStreamName"
CAUSATION_POSITION = "causationMessagePosition"
CAUSATION_GLOBAL_POSITION = "causationMessageGlobalPosition"
"""The message that the message follows, its cause."""

REPLY_STREAM = "replyStreamName"
"""The stream that an answer is written to."""

PROPERTIES = "properties"
"""An object of the application's own, which the messages that follow take over."""

TAGS = "tags"
"""A list of texts, which queries look for. This one is not Eventide's."""
