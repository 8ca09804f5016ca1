"""The Avro schemas of everything that crosses the wire; every version ever shipped stays here."""
