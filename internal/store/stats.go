package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Stats is what the database tells about the work that lies before it. It is shared:
// nobody changes it.
type Stats struct {
	Lanes        []LaneStats
	Open         map[IssuerStatus]int    // open orders
	Late         map[string]int          // orders that are late, by issuer
	Attention    map[IssuerAttention]int // orders that need a human; of 100,000 of them
	Waiting      int                     // notifications that wait for their order, or could not be applied; counted up to 100,000
	WaitingSince time.Duration           // age of the oldest of them

	// DeadTuples of the outbox are versions of rows that vacuum has not removed.
	DeadTuples int
	// OldestSnapshot is the age of the oldest transaction, prepared ones included, that
	// keeps vacuum from removing them. Those of other roles show only to a member of
	// pg_read_all_stats.
	OldestSnapshot time.Duration
	// OldestSnapshotXIDs is the same in transactions, and counts standbys and
	// replication slots too.
	OldestSnapshotXIDs int
}

// LaneStats is one lane's backlog of one class.
type LaneStats struct {
	Lane     string
	Class    Class
	Messages int           // all, claimed and waiting for a later time included
	Due      int           // those that could be claimed now
	Oldest   time.Duration // for how long the oldest has been due of those that wait for no earlier order of their card
	Age      time.Duration // of the oldest message, whatever it waits for
	Unknown  int           // those whose outcome at D1 is unknown
	Refused  int           // those set aside after a refusal that need not be their own fault
	GivenUp  int           // those not tried any more
}

// IssuerStatus is a label of the open orders.
type IssuerStatus struct {
	IssuerID string
	Status   order.Status
}

// IssuerAttention is a label of the orders that need a human.
type IssuerAttention struct {
	IssuerID  string
	Attention order.Attention
}

// statsShare bounds how much of the time is spent on reading statistics: one part in
// so many. What was read stands until then, however many ask.
const statsShare = 20

// statsMemory is the last answer.
type statsMemory struct {
	mu    sync.Mutex // held while they are read: who comes meanwhile gets the same
	last  *Stats
	until time.Time
}

// Stats reads them. It looks at open orders and at messages only, however many orders
// there are in all; those are counted one by one, so with a million of them the answer
// may be some seconds old.
func (s *Store) Stats(ctx context.Context) (*Stats, error) {
	m := &s.stats
	m.mu.Lock()
	defer m.mu.Unlock()
	begun := time.Now()
	if m.last != nil && begun.Before(m.until) {
		return m.last, nil
	}
	stats, err := s.readStats(ctx)
	if err != nil {
		m.last = nil
		return nil, fmt.Errorf("reading statistics: %w", err)
	}
	m.last, m.until = stats, time.Now().Add(time.Since(begun)*(statsShare-1))
	return stats, nil
}

func (s *Store) readStats(ctx context.Context) (*Stats, error) {
	stats := &Stats{Open: make(map[IssuerStatus]int), Late: make(map[string]int), Attention: make(map[IssuerAttention]int)}
	var b pgx.Batch
	b.Queue(`
		SELECT b.*, ` + oldestDue("b.lane") + ` FROM (
			SELECT lane, class, count(*), count(*) FILTER (WHERE ` + due + `),
				coalesce(now() - min(created_at), '0'), count(*) FILTER (WHERE maybe_sent_at IS NOT NULL),
				count(*) FILTER (WHERE refused_at IS NOT NULL), count(*) FILTER (WHERE run_at = 'infinity')
			FROM outbox m GROUP BY lane, class) b`).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var l LaneStats
			err := rows.Scan(&l.Lane, &l.Class, &l.Messages, &l.Due, &l.Age, &l.Unknown, &l.Refused, &l.GivenUp, &l.Oldest)
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
	b.Queue(`
		SELECT s.issuer_id, a.code, count(*)
		FROM (SELECT issuer_id, attention FROM order_state WHERE attention <> '{}' LIMIT 100000) s CROSS JOIN unnest(s.attention) AS a(code)
		GROUP BY 1, 2`).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var key IssuerAttention
			var n int
			err := rows.Scan(&key.IssuerID, &key.Attention, &n)
			stats.Attention[key] = n
			return err
		})
	})
	b.Queue(`SELECT issuer_id, count(*) FROM order_state WHERE late GROUP BY 1`).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var issuer string
			var n int
			err := rows.Scan(&issuer, &n)
			stats.Late[issuer] = n
			return err
		})
	})
	b.Queue(`SELECT (SELECT count(*) FROM (SELECT FROM notifications WHERE outcome IN ('parked', 'unapplied') LIMIT 100000) n),
		coalesce((SELECT now() - created_at FROM notifications WHERE outcome IN ('parked', 'unapplied') ORDER BY id LIMIT 1), '0')`).QueryRow(func(row pgx.Row) error {
		return row.Scan(&stats.Waiting, &stats.WaitingSince)
	})
	// Only sessions of this database and those of no database, as standbys, hold back
	// vacuum here, and no vacuum does another.
	const holds = `pid <> pg_backend_pid() AND coalesce(datname, current_database()) = current_database()
		AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)`
	b.Queue(`
		SELECT coalesce((SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'outbox'::regclass), 0),
			greatest('0', (SELECT max(now() - xact_start) FROM pg_stat_activity
					WHERE backend_xmin IS NOT NULL AND ` + holds + `),
				(SELECT max(now() - prepared) FROM pg_prepared_xacts WHERE database = current_database())),
			greatest(0, (SELECT max(age(backend_xmin)) FROM pg_stat_activity WHERE ` + holds + `),
				(SELECT max(age(transaction)) FROM pg_prepared_xacts WHERE database = current_database()),
				(SELECT max(age(xmin)) FROM pg_replication_slots))`).QueryRow(func(row pgx.Row) error {
		return row.Scan(&stats.DeadTuples, &stats.OldestSnapshot, &stats.OldestSnapshotXIDs)
	})
	return stats, s.pool.SendBatch(ctx, &b).Close()
}
