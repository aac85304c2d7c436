"""The browser's sessions: a page, and the messages it exchanges with sessions over a WebSocket."""
