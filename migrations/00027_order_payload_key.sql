-- Under which of D1's keys an order's card data was encrypted: orders whose key goes out
-- of use are told before they are sent. Adding a column without a default touches no row.

-- +goose Up

ALTER TABLE order_payload ADD COLUMN key_id text; -- the JWE's kid; null where it was not looked at yet
