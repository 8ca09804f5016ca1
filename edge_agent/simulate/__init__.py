"""`edge-agent simulate`: a plant of machines behind real Modbus TCP servers, with chaos and a record of the truth.

In the order in which a value comes to be:

    physics.py        pure: what the process does            plant.py     the sensors of a natural machine
    faults.py         pure: which value is wrong, and when    replay.py    recorded signals instead of physics
    registers.py      values to register bytes and back
    modbus_server.py  one Modbus TCP server per machine       truth.py     what every response held, to Parquet
    simulation.py     wires them; cli.py is the command; agent_config.py writes a config for the plant
"""
