package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

const (
	// expireBatch is how many changes expire in one transaction.
	expireBatch = 100
	// expireWithin is after how long no further order is dealt with by itself.
	expireWithin = 2 * time.Second
)

// ExpireChanges ends the waiting for D1's word on changes whose time is over. It returns
// how many there were; more may be left.
func (s *Store) ExpireChanges(ctx context.Context) (n int, err error) {
	keys, _, err := expiredChanges(ctx, s.pool, nil)
	if err != nil || len(keys) == 0 { // as a rule
		return 0, err
	}
	n, err = s.expireSome(ctx, keys)
	if err != nil && itsOwn(ctx, err) {
		n, err = s.expireEach(ctx, distinctKeys(keys))
	}
	if err != nil {
		return n, fmt.Errorf("letting changes expire: %w", err)
	}
	return n, nil
}

// itsOwn tells whether an error may be that of one order, and not of the database.
func itsOwn(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (!Unavailable(err) || isLockTimeout(err))
}

// expireEach deals with each order by itself: one that cannot be written, or that somebody
// keeps locked, must not keep the changes of the others waiting. Its own are tried again a
// minute later.
func (s *Store) expireEach(ctx context.Context, keys []orderKey) (sum int, err error) {
	begun := time.Now()
	for _, key := range keys {
		if time.Since(begun) > expireWithin {
			break // those that failed are put off, so that the others are the first next time
		}
		n, err := s.expireSome(ctx, []orderKey{key})
		if err != nil && !itsOwn(ctx, err) {
			return sum, err
		}
		if err != nil {
			s.cfg.Log.Error("changes of an order could not expire", "issuerId", key.issuer, "orderId", key.id, "error", err)
			if err := s.putOffExpiry(ctx, key); err != nil {
				return sum, err
			}
		}
		sum += n
	}
	return sum, nil
}

func (s *Store) putOffExpiry(ctx context.Context, key orderKey) error {
	var b pgx.Batch
	exec(&b, patience)
	exec(&b, `UPDATE order_changes SET expires_at = now() + interval '1 min'
		WHERE issuer_id = $1 AND order_id = $2 AND state IN ('REQUESTED', 'SENT') AND expires_at <= now()`, key.issuer, key.id)
	err := s.pool.SendBatch(ctx, &b).Close()
	if err != nil && itsOwn(ctx, err) { // it is among the first again
		s.cfg.Log.Error("changes of an order could not be put off", "issuerId", key.issuer, "orderId", key.id, "error", err)
		return nil
	}
	return err
}

// expireSome deals with orders in one transaction.
func (s *Store) expireSome(ctx context.Context, keys []orderKey) (n int, err error) {
	var locked map[orderKey]*lockedOrder
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, patience); err != nil {
			return err
		}
		n = 0
		if locked, err = lockOrders(ctx, tx, keys); err != nil {
			return err
		}
		// Once more, under the locks: D1 may have answered meanwhile.
		_, expired, err := expiredChanges(ctx, tx, keys)
		if err != nil {
			return err
		}
		w := advances{store: s}
		for _, o := range locked {
			for _, c := range o.open {
				claimed, over := expired[c.ID]
				if !c.waits() || !over {
					continue
				}
				c.Reason = order.ReasonNoAnswer
				if c.State == order.ChangeRequested && !c.Tried && !claimed {
					c.Reason = order.ReasonNotSent
				}
				c.State = order.ChangeExpired
				w.moveChange(o, Cause{Kind: CauseTime}, changeRow{open: c, sent: claimed})
				w.sendChange(o)
				n++
			}
		}
		var b pgx.Batch
		w.queue(&b)
		return send(ctx, tx, &b)
	})
	if err != nil {
		return 0, err
	}
	s.logChanges(ctx, locked)
	return n, nil
}

// expiredChanges finds changes whose time is over, of the given orders or of all. A worker may
// have one of them on the wire, or have died with it: then it is true.
func expiredChanges(ctx context.Context, db querier, of []orderKey) (keys []orderKey, expired map[uuid.UUID]bool, err error) {
	_, ids := columns(of)
	rows, err := db.Query(ctx, `
		SELECT issuer_id, order_id, id, EXISTS (SELECT FROM outbox m WHERE m.issuer_id = c.issuer_id AND m.order_id = c.order_id
			AND m.kind = 'change' AND m.change_id = c.id AND m.first_sent_at IS NOT NULL)
		FROM order_changes c
		WHERE state IN ('REQUESTED', 'SENT') AND expires_at <= now() AND ($1::uuid[] = '{}' OR order_id = ANY ($1))
		ORDER BY expires_at LIMIT $2`, ids, expireBatch)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for changes that expire: %w", err)
	}
	expired = make(map[uuid.UUID]bool)
	var key orderKey
	var id uuid.UUID
	var claimed bool
	_, err = pgx.ForEachRow(rows, []any{&key.issuer, &key.id, &id, &claimed}, func() error {
		keys, expired[id] = append(keys, key), claimed
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("looking for changes that expire: %w", err)
	}
	return keys, expired, nil
}
