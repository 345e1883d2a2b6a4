"""Answers from servers over HTTP: the OpenAI API and those of RK3588 boards."""
