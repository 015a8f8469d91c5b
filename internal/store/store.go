// Package store is Postgres: every SQL statement of the project, and the
// transactions that matter. Nothing is answered, sent or acknowledged before
// the row that makes it survive a crash is committed here.
//
// Locks are taken in one order everywhere: the batch, the lane, consumers, an order that a
// new one stands in for; of new orders, the keys by which they are recognised;
// notifications by digest, order_state rows by (issuer_id, order_id), operations,
// messages, card_guard by card. A deadlock (orders of one group that want the same card
// are inserted one after the other) or a serialization failure repeats the whole
// transaction.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"cardorder/internal/order"
)

// Config says which database to use and with which keys.
type Config struct {
	URL      string // postgres://…
	MaxConns int32  // connections of the pool; 0 means 16
	Seal     *Sealer
	HashKeys HashKeys
	// DuplicateWindow says for how long after a CREATION of a card product was
	// produced another CREATION of the same card is refused. It is asked when an
	// order ends. Nil or 0 means 30 days.
	DuplicateWindow func(issuerID, cardProductID string) time.Duration
	// ForeignAfter is how long a notification may wait for its order before it is taken
	// for somebody else's and no longer tried. Nil or 0 means 30 days.
	ForeignAfter func(issuerID string) time.Duration
	// Limits are the times that the orders of a card product are held to. Nil, and a
	// nil answer, mean none.
	Limits func(issuerID, cardProductID string) *order.Limits
	// ConsumerLimits tells, by card product, how many orders of one consumer may be sent
	// within 24 hours. Nil, a product that is absent, and 0 mean any number.
	ConsumerLimits func(issuerID string) map[string]int
	// ChangeTimeout says for how long D1 may leave a change of an issuer's order
	// unanswered. Nil or 0 means 72 hours.
	ChangeTimeout func(issuerID string) time.Duration
	// OnReady is called after a commit that left something to send in a lane.
	// It must not block.
	OnReady func(lane string)
	// Tracer sees every statement; nil means none.
	Tracer pgx.QueryTracer
	// OnParked is called after a commit that lets the given parked notifications
	// find their orders. It must not block.
	OnParked func(ids []int64)
	// OnAttention is called after a commit that raised an attention of an order, OnLate
	// after one that made an order late in a status, and OnClaimLost after one that stored
	// what came of a call whose claim was lost. They must not block.
	OnAttention func(issuerID string, a order.Attention)
	OnLate      func(issuerID string, status order.Status)
	OnClaimLost func(issuerID string)
	// OnDrift is called after a commit that stored what asking D1 found. It must not block.
	OnDrift func(issuerID string, d Difference)
	// Log gets what callers are not told; nil means nothing.
	Log *slog.Logger
}

// Store is the service's database.
type Store struct {
	pool    *pgxpool.Pool
	cfg     Config
	trouble *trouble
	groups  groups[*entry]
	calls   groups[*call] // with notifications
	large   chan struct{} // calls with many notifications, while they are stored
	waiters chan struct{} // what waits long for a lock, each with a connection
	lists   chan struct{} // lists being read: they may take long, and leave half of the connections
	reports chan struct{} // the report being read

	announcer announcer
	wal       walMemory
	stats     statsMemory
	floors    floors
	timers    timers
}

// Open connects to the database. The schema is not looked at: see Migrated.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	var t trouble
	pc, err := poolConfig(cfg, &t)
	if err != nil {
		return nil, err
	}
	if cfg.OnReady == nil {
		cfg.OnReady = func(string) {}
	}
	if cfg.OnParked == nil {
		cfg.OnParked = func([]int64) {}
	}
	if cfg.OnAttention == nil {
		cfg.OnAttention = func(string, order.Attention) {}
	}
	if cfg.OnLate == nil {
		cfg.OnLate = func(string, order.Status) {}
	}
	if cfg.OnClaimLost == nil {
		cfg.OnClaimLost = func(string) {}
	}
	if cfg.OnDrift == nil {
		cfg.OnDrift = func(string, Difference) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("opening the database pool: %w", err)
	}
	s := &Store{pool: pool, cfg: cfg, trouble: &t, lists: make(chan struct{}, max(1, pc.MaxConns/2)), reports: make(chan struct{}, 1),
		large: make(chan struct{}, max(1, pc.MaxConns/4))}
	s.startCommitters()
	s.startAnnouncer()
	return s, nil
}

// Close closes every connection; it waits for those in use.
func (s *Store) Close() {
	s.stopCommitters()
	s.stopAnnouncer()
	s.pool.Close()
}

// Durable tells whether a commit survives a crash of the database: whether an
// order that was answered 201 is certain to be there afterwards.
func (s *Store) Durable(ctx context.Context) (bool, error) {
	var setting string
	if err := s.pool.QueryRow(ctx, `SELECT current_setting('synchronous_commit')`).Scan(&setting); err != nil {
		return false, fmt.Errorf("reading synchronous_commit: %w", err)
	}
	return setting != "off", nil
}

// ErrNotFound is returned for a row that does not exist.
var ErrNotFound = errors.New("not found")

// orderKey names an order.
type orderKey struct {
	issuer string
	id     uuid.UUID
}

// inTx runs f in a transaction and repeats it whole when Postgres says that it
// might succeed next time. f must not leave traces outside the transaction.
func (s *Store) inTx(ctx context.Context, f func(pgx.Tx) error) error {
	return s.inTxWith(ctx, pgx.TxOptions{}, f)
}

func (s *Store) inTxWith(ctx context.Context, options pgx.TxOptions, f func(pgx.Tx) error) error {
	return repeat(ctx, func() error {
		committing := false
		err := pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error {
			err := f(tx)
			committing = err == nil
			return err
		})
		if committing {
			s.committed(err)
		}
		return err
	})
}

// inTwoTrips runs a transaction in two round trips: what ask queues is sent with the
// BEGIN, and what answer queues, when the results of that are there, with the COMMIT.
// It repeats both as inTx does.
func (s *Store) inTwoTrips(ctx context.Context, ask, answer func(*pgx.Batch)) error {
	return s.inTrips(ctx, ask, func(*pgx.Batch) {}, answer)
}

// inTrips is inTwoTrips with a third trip between, when more queues anything.
func (s *Store) inTrips(ctx context.Context, ask, more, answer func(*pgx.Batch)) error {
	return repeat(ctx, func() error {
		conn, err := s.pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release() // which closes one that is still in a transaction
		var first, between, last pgx.Batch
		exec(&first, "BEGIN")
		ask(&first)
		if err = conn.SendBatch(ctx, &first).Close(); err == nil {
			if more(&between); between.Len() > 0 {
				err = conn.SendBatch(ctx, &between).Close()
			}
		}
		if err != nil {
			rollBack(ctx, conn)
			return err
		}
		answer(&last)
		exec(&last, "COMMIT")
		err = conn.SendBatch(ctx, &last).Close()
		if err != nil {
			s.committed(err)
			rollBack(ctx, conn)
		}
		return err
	})
}

// committed takes note of a COMMIT that did not come back in time: a synchronous
// standby may be away.
func (s *Store) committed(err error) {
	if pgconn.Timeout(err) {
		s.trouble.set(errCommit)
	}
}

// rollBack ends a failed transaction, if its connection is still of use.
func rollBack(ctx context.Context, conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() || conn.Conn().PgConn().TxStatus() == 'I' {
		return
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = conn.Exec(short, "ROLLBACK") // or the connection is closed when it is released
}

// repeat runs f until it succeeds, or fails in a way that trying again does not change.
func repeat(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || try == 10 || !repeatable(err) {
			return err
		}
		pause := time.NewTimer(rand.N(time.Duration(try) * 10 * time.Millisecond))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// repeatable tells whether a failed transaction left nothing behind and may
// succeed when it is repeated: a deadlock, a serialization failure, a prepared
// statement that is gone or no longer fits the schema, which is then prepared anew, or a
// row that another transaction has written meanwhile, which the repeated one sees.
func repeatable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (slices.Contains([]string{"40001", "40P01", "26000", "0A000"}, pg.Code) ||
		pg.Code == "23505" && slices.Contains(seenFirst, pg.ConstraintName))
}

// seenFirst are unique indexes by which a transaction learns that another one came first.
var seenFirst = []string{"notifications_content", "notifications_unmatched", "operations_pkey"}

// Unavailable tells whether err means that the database could not be asked, or
// gave up: the request may succeed when it is sent again.
func Unavailable(err error) bool {
	if Away(err) || errors.Is(err, errClosed) || errors.Is(err, ErrNewerRelease) {
		return true
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch class(pg) {
		case "40", "53", "55", "57", "58": // rollback, resources, locks, operator, system
			return true
		}
	}
	return false
}

// Away tells whether err means that no database could be asked at all.
func Away(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// A connection that was ended, a server that is stopping, a standby, a
		// session that was idle in a transaction for too long.
		return class(pg) == "08" || strings.HasPrefix(pg.Code, "57P") || pg.Code == codeReadOnly || pg.Code == "25P03"
	}
	return pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || isNetError(err)
}

func isNetError(err error) bool {
	_, ok := errors.AsType[*net.OpError](err)
	return ok
}

// isLockTimeout tells whether a statement gave up waiting for a lock.
func isLockTimeout(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "55P03"
}

// exec queues a statement whose result nobody needs.
func exec(b *pgx.Batch, sql string, args ...any) { b.Queue(sql, args...) }

// send runs a batch in one round trip and returns the first error.
func send(ctx context.Context, tx pgx.Tx, b *pgx.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}

// optional turns the empty string into NULL.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// optionalID turns the nil id into NULL.
func optionalID(id uuid.UUID) *uuid.UUID {
	if id == uuid.Nil {
		return nil
	}
	return &id
}
