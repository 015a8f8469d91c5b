-- Orders that replace another one, and orders that come by the million in one
-- upload. Adding columns without a default touches no row; indexes on tables that
-- may be large are built in files of their own.

-- +goose Up

ALTER TABLE orders
    ADD COLUMN replaces_order_id uuid, -- the order that this one stands in for
    ADD COLUMN batch_id          uuid; -- the upload it came with

-- An upload of many orders. It is read as a stream and committed chunk by chunk:
-- rows_read and digest say how far it came, so that the same file can go on.
CREATE TABLE order_batches (
    issuer_id    text        NOT NULL,
    id           uuid        NOT NULL,
    key          text        NOT NULL, -- the Idempotency-Key of the upload
    status       text        NOT NULL, -- RECEIVING, INTERRUPTED, COMPLETED, CANCELLED
    format       text        NOT NULL, -- ndjson or csv
    hold         boolean     NOT NULL, -- as the upload asked
    held         boolean     NOT NULL, -- whether its further orders are kept back
    rows_read    bigint      NOT NULL DEFAULT 0,
    accepted     bigint      NOT NULL DEFAULT 0,
    replayed     bigint      NOT NULL DEFAULT 0,
    refused      bigint      NOT NULL DEFAULT 0,
    digest       bytea       NOT NULL, -- keyed hash of the rows read
    claim_token  uuid,                 -- of the request that uploads it
    lease_until  timestamptz,          -- when that request counts as dead
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text        NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    PRIMARY KEY (issuer_id, id)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX order_batches_key ON order_batches (issuer_id, key);

-- What became of each row of an upload.
CREATE TABLE order_batch_rows (
    issuer_id text   NOT NULL,
    batch_id  uuid   NOT NULL,
    line      bigint NOT NULL, -- in the file, from 1
    outcome   text   NOT NULL, -- accepted, replayed, refused
    order_id  uuid,            -- the order it led to, or that was in the way
    problem   text,            -- why it was refused
    faults    jsonb,           -- the same in detail; never a value
    PRIMARY KEY (issuer_id, batch_id, line)
);
