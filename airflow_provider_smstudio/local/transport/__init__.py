"""HTTP and websocket frames over asyncio streams."""
