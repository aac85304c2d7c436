"""The browser's face: a page, and the messages it exchanges with sessions over a WebSocket."""
