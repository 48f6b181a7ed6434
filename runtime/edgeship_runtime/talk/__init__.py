"""Conversations: thought, tool calls and structured answers as events; presets; several answers; asyncio."""

from edgeship_runtime.talk.conversation import Conversation, converse

__all__ = ["Conversation", "converse"]
