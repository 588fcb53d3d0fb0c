"""Policies for robots: the server, the client that needs no torch, the deadline scheduler.

Transport: MessagePack maps in binary WebSocket frames. ZeroMQ answers in 70 us where this takes a few hundred, but
WebSocket gives on one port what a server of robots needs and ZeroMQ leaves to us: a token checked before the first
message is read, a size limit that closes the connection before the message is in memory, the state of every single
client (a ROUTER socket drops silently when one stops reading), plain HTTP for health and metrics, and a way through
proxies and tunnels. Within one host the robot side has shared memory for what must be faster.

Importing this package, its client or its server imports no torch.
"""
