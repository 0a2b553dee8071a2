import psycopg


def test_pg(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url) as c:
        assert c.execute("select 1").fetchone() == (1,)
