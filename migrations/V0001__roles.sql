-- The roles of members, each with the least that its work needs. They may log in only once the configuration gives them a
-- password or a certificate. Roles belong to the whole instance and may be there already: nothing here fails then.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['pgbaton_replication', 'pgbaton_rewind', 'pgbaton_monitor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN NOINHERIT', role);
        END IF;
    END LOOP;
END
$$;

-- Streams WAL and takes base backups.
ALTER ROLE pgbaton_replication REPLICATION;

-- What pg_rewind calls on its source (PostgreSQL manual, "pg_rewind", Notes). In this database alone.
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO pgbaton_rewind;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO pgbaton_rewind;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO pgbaton_rewind;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO pgbaton_rewind;

-- Reads statistics and settings.
GRANT pg_monitor TO pgbaton_monitor;
ALTER ROLE pgbaton_monitor INHERIT;

COMMENT ON SCHEMA pgbaton IS 'pgbaton: what its agents keep in the database';
COMMENT ON ROLE pgbaton_replication IS 'pgbaton: streaming and base backups of members';
COMMENT ON ROLE pgbaton_rewind IS 'pgbaton: pg_rewind of members';
COMMENT ON ROLE pgbaton_monitor IS 'pgbaton: statistics';
