"""The serving store: connections, migrations, and the upkeep that plain PostgreSQL needs."""
