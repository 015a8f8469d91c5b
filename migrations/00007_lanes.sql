-- Lanes that people pause and that stop by themselves, replicas that share the
-- limits of a lane, and the memory of which history of the database was last seen.
-- Adding columns with constant defaults touches no row; indexes are in files of
-- their own.

-- +goose Up

-- A lane has a row once it was paused or stopped. Every claim looks at it, so both
-- hold for all replicas from the commit on.
CREATE TABLE lanes (
    lane         text    PRIMARY KEY,
    paused_at    timestamptz,
    paused_by    text,
    pause_reason text,
    stopped_at   timestamptz,               -- different orders were refused as if the set-up were wrong
    stop_reason  text,
    probe_at     timestamptz,               -- when the next order is tried while it is stopped
    probes       integer NOT NULL DEFAULT 0, -- since it stopped
    resumes      integer NOT NULL DEFAULT 0, -- how often a person resumed it: breakers half-open when it grows
    updated_at   timestamptz NOT NULL DEFAULT now()
);

-- The live processes: each says so every second or two.
CREATE TABLE replicas (
    id         uuid        PRIMARY KEY,
    host       text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    health     jsonb       NOT NULL -- of its lanes, for people
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- The history of the database that this service last worked with: after a failover
-- or a restore it is another one, and what was sent meanwhile may be unknown to it.
CREATE TABLE database_history (
    only_row          boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    system_identifier bigint      NOT NULL,
    timeline          integer     NOT NULL, -- 0 while messages are being marked: none has this number
    seen_at           timestamptz NOT NULL DEFAULT now() -- orders untouched since before may have been sent in another history
);

-- Locked in the order of all transactions of the service, which goes on meanwhile.
ALTER TABLE order_state SET (fillfactor = 40);
ALTER TABLE order_state
    ADD COLUMN next_check_at timestamptz, -- when D1 is to be asked about the order
    ADD COLUMN checks        smallint NOT NULL DEFAULT 0; -- since the last news

-- A claim changes no indexed column and finds room in the same page, so it writes no
-- index entry.
ALTER TABLE outbox SET (fillfactor = 40);
ALTER TABLE outbox
    ADD COLUMN leased_until timestamptz, -- set while claimed: then the message is due again
    ADD COLUMN refused_at   timestamptz, -- set aside: the last refusal that need not be the order's own fault, since when none was accepted
    ADD COLUMN reject_after interval,    -- for how long after refused_since such a refusal proves nothing
    ADD COLUMN trying_for   interval NOT NULL DEFAULT '0', -- waits between tries that count towards giving up
    ADD COLUMN halt         text;        -- hold or cancel, which came when D1 may have had it

-- The release before writes the end of a lease into run_at. It would take a message that
-- is claimed here for one whose lease ran out: its claim fails instead.
ALTER TABLE outbox ADD CONSTRAINT outbox_leased CHECK (run_at <= leased_until) NOT VALID;
