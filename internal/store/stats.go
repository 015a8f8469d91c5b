package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Stats is what the database tells about the work that lies before it.
type Stats struct {
	Lanes        []LaneStats
	Open         map[IssuerStatus]int // open orders
	Waiting      int                  // notifications that wait for their order, or could not be applied; counted up to 100,000
	WaitingSince time.Duration        // age of the oldest of them
}

// LaneStats is one lane's backlog of one class.
type LaneStats struct {
	Lane     string
	Class    Class
	Messages int           // all, claimed and waiting for a later time included
	Due      int           // those that could be claimed now
	Oldest   time.Duration // for how long the oldest of those has been due
	Age      time.Duration // of the oldest message, whatever it waits for
	Unknown  int           // those whose outcome at D1 is unknown
}

// IssuerStatus is a label of the open orders.
type IssuerStatus struct {
	IssuerID string
	Status   order.Status
}

// Stats reads them. It looks at open orders only: partial indexes keep that
// cheap however many orders there are in all.
func (s *Store) Stats(ctx context.Context) (*Stats, error) {
	stats := &Stats{Open: make(map[IssuerStatus]int)}
	var b pgx.Batch
	b.Queue(`
		SELECT lane, class, count(*), count(*) FILTER (WHERE run_at <= now()),
			coalesce(now() - min(run_at) FILTER (WHERE run_at <= now()), '0'),
			coalesce(now() - min(created_at), '0'), count(*) FILTER (WHERE maybe_sent_at IS NOT NULL)
		FROM outbox GROUP BY lane, class`).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var l LaneStats
			err := rows.Scan(&l.Lane, &l.Class, &l.Messages, &l.Due, &l.Oldest, &l.Age, &l.Unknown)
			stats.Lanes = append(stats.Lanes, l)
			return err
		})
	})
	b.Queue(`SELECT issuer_id, status, count(*) FROM order_state WHERE ended_at IS NULL GROUP BY 1, 2`).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var key IssuerStatus
			var n int
			err := rows.Scan(&key.IssuerID, &key.Status, &n)
			stats.Open[key] = n
			return err
		})
	})
	b.Queue(`SELECT (SELECT count(*) FROM (SELECT FROM notifications WHERE outcome IN ('parked', 'unapplied') LIMIT 100000) n),
		coalesce((SELECT now() - created_at FROM notifications WHERE outcome IN ('parked', 'unapplied') ORDER BY id LIMIT 1), '0')`).QueryRow(func(row pgx.Row) error {
		return row.Scan(&stats.Waiting, &stats.WaitingSince)
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("reading statistics: %w", err)
	}
	return stats, nil
}
