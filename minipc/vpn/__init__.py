"""The operator's tunnel: who may connect, with which key, and the file that a device needs for it."""
