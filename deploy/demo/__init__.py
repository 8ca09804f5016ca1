"""`make demo`: a plant, an agent, a broker, an ingester and a database, and the proof that nothing was lost.

rig.py        starts, stops and kills the real programs, each a process of its own
reconcile.py  compares the plant's truth, the buffer, the tables and the archive; shares no code with them
live.py       what is shown while it runs, and the closing table
"""
