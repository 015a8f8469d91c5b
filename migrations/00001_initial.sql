-- The first schema. What is asked (orders) is apart from where it stands
-- (order_state), from personal data (order_payload) and from what is still to
-- be sent (outbox), because they differ in how often they change, who may read
-- them and when they go.
--
-- Every key begins with issuer_id, so that issuers can be spread over a
-- distributed Postgres. Order ids are UUIDv7: new rows land at the right-hand
-- edge of each index. There are no foreign keys: all rows of an order are
-- written in one transaction by one function.
--
-- What happened is dated by clock_timestamp(), taken after the order was locked:
-- now() is the start of a transaction, which may have waited for another one.

-- +goose Up

-- What was asked for. Never changed after the insert.
CREATE TABLE orders (
    issuer_id            text        NOT NULL,
    id                   uuid        NOT NULL,
    issuer_request_id    text        NOT NULL, -- sent to D1 on every try; never changes
    card_id              text        NOT NULL,
    consumer_id          text        NOT NULL,
    card_product_id      text        NOT NULL,
    distribution_channel text        NOT NULL,
    group_id             text,                 -- of a BULK shipment
    terms                jsonb       NOT NULL, -- the members that identify nobody
    metadata             jsonb,
    urgent               boolean     NOT NULL,
    duplicate_override   text,                 -- the reason given
    warnings             text[]      NOT NULL,
    content_hash         bytea       NOT NULL, -- keyed hash of what idempotency compares
    content_hash_version smallint    NOT NULL,
    created_at           timestamptz NOT NULL DEFAULT now(),
    created_by           text        NOT NULL, -- name of the client
    PRIMARY KEY (issuer_id, id)
);
CREATE UNIQUE INDEX orders_issuer_request_id ON orders (issuer_id, issuer_request_id);
CREATE INDEX orders_card ON orders (issuer_id, card_id, id);

-- Keys by which a request is recognised when it comes again. An order can
-- collect several.
CREATE TABLE idempotency_keys (
    issuer_id text NOT NULL,
    key       text NOT NULL,
    order_id  uuid NOT NULL,
    PRIMARY KEY (issuer_id, key)
);

-- Where an order stands. No index may name a column that changes at every
-- step, not even in a predicate: updates then stay within their page (HOT).
CREATE TABLE order_state (
    issuer_id            text        NOT NULL,
    order_id             uuid        NOT NULL,
    version              integer     NOT NULL, -- the seq of the newest event
    status               text        NOT NULL,
    rank                 smallint    NOT NULL DEFAULT 0,
    step_rank            smallint    NOT NULL DEFAULT 0,
    top_rank             smallint    NOT NULL DEFAULT 0,
    end_rank             smallint    NOT NULL DEFAULT 0,
    ends_at              text        NOT NULL, -- the status at which it has arrived
    operation_id         text,                 -- the adopted D1 operation
    attention            text[]      NOT NULL DEFAULT '{}',
    due_date             text,
    due_date_rank        smallint    NOT NULL DEFAULT 0,
    production_site      text,
    production_site_rank smallint    NOT NULL DEFAULT 0,
    first_sent_at        timestamptz,          -- the first moment at which D1 may have learned of it
    updated_at           timestamptz NOT NULL DEFAULT now(),
    ended_at             timestamptz,
    PRIMARY KEY (issuer_id, order_id)
) WITH (fillfactor = 70);
CREATE INDEX order_state_open ON order_state (issuer_id, order_id) WHERE ended_at IS NULL;
CREATE INDEX order_state_attention ON order_state (issuer_id, order_id) WHERE attention <> '{}';

-- Personal data and the JWE, sealed; the associated data binds each value to
-- its table, column and order. Lists never read this table.
CREATE TABLE order_payload (
    issuer_id      text  NOT NULL,
    order_id       uuid  NOT NULL,
    production     bytea NOT NULL, -- the D1 body without the JWE
    encrypted_data bytea NOT NULL, -- the JWE
    PRIMARY KEY (issuer_id, order_id)
);
-- Ciphertext does not compress; don't try.
ALTER TABLE order_payload
    ALTER COLUMN production SET STORAGE EXTERNAL,
    ALTER COLUMN encrypted_data SET STORAGE EXTERNAL;

-- The duplicate guard: one row per card while an order of it is open, and for
-- some time after a CREATION was produced.
CREATE TABLE card_guard (
    issuer_id         text   NOT NULL,
    card_id           text   NOT NULL,
    order_ids         uuid[] NOT NULL, -- open orders; several only after an override
    creation_order_id uuid,            -- the CREATION that was produced
    creation_until    timestamptz,     -- until when another CREATION is refused
    PRIMARY KEY (issuer_id, card_id)
);

-- The timeline's spine. seq is the order's version: a missing one is a gap.
CREATE TABLE order_events (
    issuer_id       text        NOT NULL,
    order_id        uuid        NOT NULL,
    seq             integer     NOT NULL,
    type            text        NOT NULL,
    status          text        NOT NULL,
    previous_status text,
    attention       text[]      NOT NULL,
    cause           text        NOT NULL, -- request, attempt, notification, ...
    cause_id        text,                 -- of the attempt or notification
    actor           text,                 -- the client or person, where there is one
    detail          jsonb,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (issuer_id, order_id, seq)
);

-- Messages to send: the hot table, small, rows deleted when done. A claimed
-- message has run_at at the end of its lease, so that one index finds both what
-- is ready and what a dead worker left behind.
CREATE TABLE outbox (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane              text        NOT NULL, -- whose limits it shares: an issuer's D1
    kind              text        NOT NULL, -- submit
    class             smallint    NOT NULL DEFAULT 0, -- 0 single, 1 batch
    issuer_id         text        NOT NULL,
    order_id          uuid        NOT NULL,
    card_id           text        NOT NULL,
    run_at            timestamptz NOT NULL DEFAULT now(),
    claim_token       uuid,                 -- set while claimed; every result must match it
    tries             integer     NOT NULL DEFAULT 0, -- calls since the last progress: the exponent of the back-off
    first_sent_at     timestamptz,          -- the first moment at which a byte may have left
    refused_since     timestamptz,          -- of a row of refusals that need not be the order's fault
    maybe_sent_at     timestamptz,          -- the last such moment while the outcome is unknown, else null
    asks              integer     NOT NULL DEFAULT 0, -- questions asked about the unknown outcome
    negatives         smallint    NOT NULL DEFAULT 0, -- of them, answers that count as "not there"
    resend_off        boolean     NOT NULL DEFAULT false, -- ask, never send again
    resends           integer     NOT NULL DEFAULT 0, -- how often it was sent again after D1 did not show it
    created_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (issuer_id, order_id, kind)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000
);
CREATE INDEX outbox_ready ON outbox (lane, class, run_at);
CREATE INDEX outbox_card ON outbox (issuer_id, card_id, id);

-- Every D1 operation ever seen for an order: more than one PRODUCE is a second card.
CREATE TABLE operations (
    issuer_id    text        NOT NULL,
    operation_id text        NOT NULL,
    order_id     uuid        NOT NULL,
    operation    text        NOT NULL, -- D1's kind: PRODUCE
    source       text        NOT NULL, -- where it was first seen: answer, status, notification
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer_id, operation_id)
);
CREATE INDEX operations_order ON operations (issuer_id, order_id);

-- Every call to D1 for an order and what came of it. Facts: stored even when
-- the worker had lost its claim.
CREATE TABLE attempts (
    issuer_id      text        NOT NULL,
    order_id       uuid        NOT NULL,
    id             uuid        NOT NULL,
    kind           text        NOT NULL, -- submit or ask
    outcome        text        NOT NULL,
    reason         text        NOT NULL,
    http_status    smallint,
    error_code     text,
    error_text     text,                 -- D1's, reduced to words that cannot be data
    operation_id   text,
    correlation_id text        NOT NULL,
    started_at     timestamptz NOT NULL, -- by the worker's clock
    duration_ms    integer     NOT NULL,
    claim_lost     boolean     NOT NULL, -- another worker had taken over
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (issuer_id, order_id, id)
);

-- Everything D1 ever sent, one row per operation of a call, its bytes sealed.
CREATE TABLE notifications (
    id                bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    issuer_id         text        NOT NULL,
    digest            bytea       NOT NULL, -- keyed hash of the content: a repeat has the same
    body              bytea       NOT NULL,
    operation         text,
    operation_id      text,
    card_id           text,
    issuer_request_id text,
    order_id          uuid,                 -- the order it was matched to
    outcome           text        NOT NULL, -- applied, parked, unapplied, ignored
    correlation_id    text,
    times_seen        integer     NOT NULL DEFAULT 1,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_try_at       timestamptz,          -- of a parked or unapplied one
    tries             integer     NOT NULL DEFAULT 0
);
ALTER TABLE notifications ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX notifications_digest ON notifications (issuer_id, digest);
CREATE INDEX notifications_order ON notifications (issuer_id, order_id, id) WHERE order_id IS NOT NULL;
CREATE INDEX notifications_retry ON notifications (next_try_at) WHERE outcome IN ('parked', 'unapplied');
CREATE INDEX notifications_waiting ON notifications (id) WHERE outcome IN ('parked', 'unapplied');
CREATE INDEX notifications_parked_operation ON notifications (issuer_id, operation_id) WHERE outcome = 'parked';
CREATE INDEX notifications_parked_request ON notifications (issuer_id, issuer_request_id) WHERE outcome = 'parked';
CREATE INDEX notifications_parked_card ON notifications (issuer_id, card_id) WHERE outcome = 'parked';

-- Where the carrier has the card, one row per tracking number.
CREATE TABLE shipments (
    issuer_id       text        NOT NULL,
    order_id        uuid        NOT NULL,
    tracking_number text        NOT NULL, -- empty while the carrier has given none
    carrier         text,
    status          text,
    tracking_url    text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer_id, order_id, tracking_number)
);
CREATE INDEX shipments_tracking_number ON shipments (issuer_id, tracking_number);
