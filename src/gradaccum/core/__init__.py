"""The arithmetic: Request -> Plan. Standard library alone; no file, no clock, no environment."""
