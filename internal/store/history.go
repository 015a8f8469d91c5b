package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// A failover may lose the newest commits, and a restore loses more: what was sent in
// the lost history is unknown to the database that goes on. So the row of
// database_history says in which history this service works. While the database is in
// another one nothing is claimed, every message is marked so that D1 is asked before
// anything is sent, and only then the row follows. Orders without a message that are
// older than the change, as held or rejected ones, are asked about first when they get
// one: see queueSubmits.

// history is what tells one history of a database from another.
type history struct {
	SystemIdentifier int64 // of the cluster, since initdb
	Timeline         int32 // a promotion or a restore begins another
}

// historyStays keeps the remembered history as it is until the transaction ends. It is locked
// before all else.
const historyStays = `SELECT FROM database_history WHERE only_row FOR SHARE`

// doubted is the timeline of a history in which messages are still to be marked: none
// has this number.
const doubted = 0

// walMemory remembers how far the log had come. Only a database that was set back to
// an earlier copy of its files is behind that in the same timeline.
type walMemory struct {
	mu sync.Mutex // held while the database is asked, so that answers come in order
	history
	position int64
	// marked is when this process last got on with the marking of messages.
	marked time.Time
}

// ahead tells whether the database was further in this history before.
func (w *walMemory) ahead(h history, position int64) bool {
	return w.history == h && position < w.position
}

func (w *walMemory) remember(h history, position int64) { w.history, w.position = h, position }

// CheckTimeline compares the history of the database with the one remembered. When
// it is another, after a failover or a restore, every message that is not done is
// marked so that D1 is asked before anything is sent: lease is for how long a worker
// may still hold a claim that this database has never heard of. That may take long
// when there are many; each round trip is bounded by itself. While another process
// marks them it says that the history has changed, and does nothing.
func (s *Store) CheckTimeline(ctx context.Context, lease time.Duration) (changed bool, err error) {
	s.wal.mu.Lock()
	defer s.wal.mu.Unlock()
	h, err := s.histories(ctx)
	if err != nil {
		return false, err
	}
	back := s.wal.ahead(h.now, h.position)
	if h.remembered == h.now && !back {
		s.wal.remember(h.now, h.position)
		return false, nil
	}
	if h.marking {
		s.wal.remember(h.now, h.position)
		return true, nil
	}
	s.cfg.Log.Warn("the database is in another history, after a failover or a restore: D1 is asked about every message before it is sent",
		"timeline", h.now.Timeline, "remembered", h.remembered.Timeline, "setBack", back)
	if err := s.markAll(ctx, h.remembered, lease); err != nil {
		return false, err
	}
	s.wal.remember(h.now, h.position)
	return true, nil
}

// Restored says that the database was restored to an earlier state, whether it shows
// or not, and marks every message as CheckTimeline does.
func (s *Store) Restored(ctx context.Context, lease time.Duration) error {
	s.wal.mu.Lock()
	defer s.wal.mu.Unlock()
	h, err := s.histories(ctx)
	if err != nil {
		return err
	}
	return s.markAll(ctx, h.remembered, lease)
}

// histories is what the database and the row of database_history say.
type histories struct {
	now, remembered history
	// position is how far the database's log has reached the disk: not less after a
	// crash, unlike what was only written.
	position int64
	marking  bool // another process is marking messages
}

// markerDies is after how long without progress a process that marks messages is taken
// for dead. The clock may have gone back with a failover.
const markerDies = 10 * time.Second

// histories returns the history of the database and the one remembered; the first one
// ever seen is remembered at once.
func (s *Store) histories(ctx context.Context) (h histories, err error) {
	// Orders of the first history were never sent in another.
	const remember = `
		INSERT INTO database_history (system_identifier, timeline, seen_at) SELECT system_identifier, timeline, '-infinity'
		FROM (` + currentHistory + `) c WHERE NOT EXISTS (SELECT FROM database_history) ON CONFLICT DO NOTHING`
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	var b pgx.Batch
	exec(&b, remember)
	b.Queue(`SELECT c.*, h.system_identifier, h.timeline,
			h.timeline = $1 AND h.seen_at <> $3 AND h.seen_at BETWEEN clock_timestamp() - $2::interval AND clock_timestamp()
		FROM (`+currentHistory+`) c CROSS JOIN database_history h`, doubted, markerDies, s.wal.marked).QueryRow(func(row pgx.Row) error {
		return row.Scan(&h.now.SystemIdentifier, &h.now.Timeline, &h.position, &h.remembered.SystemIdentifier, &h.remembered.Timeline, &h.marking)
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return h, fmt.Errorf("reading the database's history: %w", err)
	}
	return h, nil
}

// currentHistory reads the history in which the database is. It needs no privileges,
// and fails on a standby. A file of the log is named by its timeline first.
const currentHistory = `
	SELECT system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer AS timeline,
		(pg_current_wal_flush_lsn() - '0/0')::bigint AS position
	FROM pg_control_system()`

// errMarked ends a marking that another process has finished or begun anew.
var errMarked = errors.New("another process has marked the messages")

// markChunk is how many messages are marked in one transaction: it bounds for how long
// they stay locked.
const markChunk = 5000

// markAll marks every message in chunks and then remembers the history of the database.
// Between two chunks nothing is claimed: the remembered history is none meanwhile. A
// process that dies on the way leaves it to the next, which begins anew.
func (s *Store) markAll(ctx context.Context, remembered history, lease time.Duration) error {
	var last int64
	var since time.Time
	// What is stored from now on was never sent in another history.
	err := s.inShortTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var b pgx.Batch
		exec(&b, `UPDATE database_history SET timeline = $3, seen_at = clock_timestamp() WHERE system_identifier = $1 AND timeline = $2`,
			remembered.SystemIdentifier, remembered.Timeline, doubted)
		b.Queue(`SELECT (SELECT coalesce(max(id), 0) FROM outbox), (SELECT seen_at FROM database_history)`).QueryRow(func(row pgx.Row) error {
			return row.Scan(&last, &since)
		})
		return send(ctx, tx, &b)
	})
	if err != nil {
		return fmt.Errorf("doubting the database's history: %w", err)
	}
	s.wal.marked = since
	marked := 0
	for after := int64(0); after < last; {
		var reached int64
		var n int
		var seen time.Time
		err := s.inShortTx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
			if seen, err = stillDoubted(ctx, tx, since); err != nil {
				return err
			}
			reached, n, err = markMessages(ctx, tx, after, last, lease)
			return err
		})
		if errors.Is(err, errMarked) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("marking messages after a change of the database's history: %w", err)
		}
		after, marked, since, s.wal.marked = reached, marked+n, seen, seen
	}
	err = s.inShortTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := stillDoubted(ctx, tx, since); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			UPDATE database_history h SET system_identifier = c.system_identifier, timeline = c.timeline, seen_at = clock_timestamp()
			FROM (`+currentHistory+`) c`)
		return err
	})
	if err != nil && !errors.Is(err, errMarked) {
		return fmt.Errorf("remembering the database's history: %w", err)
	}
	s.cfg.Log.Warn("D1 will be asked about every message before it is sent", "messages", marked)
	return nil
}

// inShortTx is inTx within a time of its own: a network that swallows everything must
// not hold up the heartbeat for ever.
func (s *Store) inShortTx(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	return s.inTx(ctx, func(tx pgx.Tx) error { return f(ctx, tx) })
}

// stillDoubted locks the remembered history, if this marking is still the one that has
// to be done, and says that it goes on: others leave it alone then. A failover that
// forgot a chunk of it forgot that too, and ends the marking.
func stillDoubted(ctx context.Context, tx pgx.Tx, since time.Time) (seen time.Time, err error) {
	err = tx.QueryRow(ctx, `
		UPDATE database_history SET seen_at = greatest(clock_timestamp(), seen_at + interval '1 us')
		WHERE timeline = $1 AND seen_at = $2 RETURNING seen_at`, doubted, since).Scan(&seen)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errMarked
	}
	return seen, err
}

// markMessages marks messages after one id, up to another, and returns how far it came.
// What a worker does with a claim of before is a fact and changes no state, since its
// token is gone; its bytes may leave until the end of its lease. Orders that were never
// sent in this history may have been sent as soon as they were accepted. One that was
// given up is asked about, but not sent unless somebody has it tried again. A change is sent
// again in any case: D1 may have it is all that is to be known of it.
func markMessages(ctx context.Context, tx pgx.Tx, after, last int64, lease time.Duration) (reached int64, marked int, err error) {
	err = tx.QueryRow(ctx, `
		WITH part AS (
			SELECT id, issuer_id, order_id, kind FROM outbox WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3 FOR UPDATE
		), marked AS (
			UPDATE outbox m SET
				maybe_sent_at = now() + $4::interval, first_sent_at = coalesce(m.first_sent_at, o.created_at),
				class = $5, claim_token = NULL, leased_until = NULL, tries = 0, asks = 0, negatives = 0,
				refused_since = NULL, refused_at = NULL, reject_after = NULL,
				resend_off = m.resend_off OR m.run_at = 'infinity', run_at = now() + random() * interval '1 min'
			FROM part JOIN orders o ON o.issuer_id = part.issuer_id AND o.id = part.order_id
			WHERE m.id = part.id AND part.kind = 'submit'
			RETURNING 1
		), changes AS (
			UPDATE outbox m SET first_sent_at = coalesce(m.first_sent_at, now())
			FROM part WHERE m.id = part.id AND part.kind = 'change'
		)
		SELECT coalesce((SELECT max(id) FROM part), $2), (SELECT count(*) FROM marked)`,
		after, last, markChunk, lease, ClassQuestion).Scan(&reached, &marked)
	return reached, marked, err
}
