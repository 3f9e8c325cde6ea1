"""OpenAI's API, and a page to talk on, before a Triton server.

What a client asks becomes requests to Triton in `openai_requests`, what Triton answers becomes
OpenAI's objects in `openai_answers`; `app` puts the two together.
"""
