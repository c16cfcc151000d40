"""The HTTP server: OpenAI's API and a chat page over the batched engine, for one machine.

``options`` is light; everything else loads Starlette, uvicorn and pydantic.
"""
