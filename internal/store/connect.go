package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// connectTimeout is how long a host of the URL may take to let us in, unless the
	// URL says otherwise: the next one may be the primary by now.
	connectTimeout = 3 * time.Second
	// pingTimeout bounds the look at a connection that was idle.
	pingTimeout = 2 * time.Second
	// deadPeer is after how long a host that answers nothing any more, not even TCP,
	// is taken for gone. Without it the system waits for some fifteen minutes.
	deadPeer = 15 * time.Second
	// troubleFor is for how long a database that could not write is spoken of: only
	// work shows that it can again, and there may be none.
	troubleFor = 10 * time.Second
)

// poolConfig is how the service connects.
func poolConfig(cfg Config, t *trouble) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// The error of pgx masks the password, but not every other part.
		return nil, errors.New("parsing the database URL: it is not a PostgreSQL URL")
	}
	pc.MaxConns = cfg.MaxConns
	if pc.MaxConns == 0 {
		pc.MaxConns = 16
	}
	pc.PingTimeout = pingTimeout
	conn := pc.ConnConfig
	conn.Tracer = cfg.Tracer
	findPrimary(&conn.Config)
	conn.OnPgError = func(_ *pgconn.PgConn, e *pgconn.PgError) bool {
		t.note(e)
		return e.Code != codeReadOnly && !strings.EqualFold(e.Severity, "FATAL")
	}
	params := conn.RuntimeParams
	params["application_name"] = "cardorder"
	params["timezone"] = "UTC"
	params["default_transaction_isolation"] = "read committed" // what every lock here was thought out for
	// No statement of the service is slow, and no transaction waits for anything
	// outside the database; what does, is broken and must not hold locks.
	params["statement_timeout"] = "10s"
	params["lock_timeout"] = "5s"
	params["idle_in_transaction_session_timeout"] = "10s"
	return pc, nil
}

// findPrimary makes connections lead to a server that takes writes, whatever the URL
// says: another one is of no use here, and a connection to it would stay in the pool.
func findPrimary(conn *pgconn.Config) {
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	conn.DialFunc = (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2},
		Control:         userTimeout,
	}).DialContext
	if conn.ValidateConnect == nil {
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
}

// codeReadOnly is the refusal of a write by a standby, or by a primary whose
// operator has made it read-only. Such a connection is given up: the next one looks
// for the primary.
const codeReadOnly = "25006"

// trouble remembers that the database answers but cannot do its work: a full disk
// lets every question through and no order.
type trouble struct {
	mu   sync.Mutex
	at   time.Time
	last error
}

// errCommit is a commit that nobody confirmed. It may have been carried out.
var errCommit = errors.New("a commit was not confirmed in time, as when a synchronous standby is missing")

// note looks at an error of any statement.
func (t *trouble) note(e *pgconn.PgError) {
	switch class(e) {
	case "53", "58": // resources, the system
		t.set(e)
	}
}

// class is the class of an error's SQLSTATE. What stands between us and PostgreSQL may
// send errors without one.
func class(e *pgconn.PgError) string { return e.Code[:min(2, len(e.Code))] }

func (t *trouble) set(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at, t.last = time.Now(), err
}

// recent returns the trouble of the last moments.
func (t *trouble) recent() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil || time.Since(t.at) > troubleFor {
		return nil
	}
	return fmt.Errorf("the database is in trouble: %w", t.last)
}

// Ping tells why the database cannot be worked with, or nil.
func (s *Store) Ping(ctx context.Context) error {
	var readOnly bool
	err := s.pool.QueryRow(ctx, `SELECT current_setting('transaction_read_only') = 'on'`).Scan(&readOnly)
	if err != nil {
		return fmt.Errorf("asking the database: %w", err)
	}
	if readOnly {
		return errReadOnly
	}
	return s.trouble.recent()
}

var errReadOnly = errors.New("the database takes no writes: it is a standby, or was made read-only")

// Denied tells whether err means that the database will not let us in as we are
// configured: waiting does not help.
func Denied(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (class(pg) == "28" || pg.Code == "3D000" || pg.Code == "42501")
}

// UnsafeFailover tells whether the URL names several hosts while a commit waits for
// none but the primary: a failover then forgets orders that were answered 201.
func (s *Store) UnsafeFailover(ctx context.Context) (bool, error) {
	conn := s.pool.Config().ConnConfig
	several := false
	for _, other := range conn.Fallbacks { // also with and without TLS to the same host
		several = several || other.Host != conn.Host || other.Port != conn.Port
	}
	if !several {
		return false, nil
	}
	var unsafe bool
	err := s.pool.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names') = ''
		OR current_setting('synchronous_commit') IN ('off', 'local')`).Scan(&unsafe)
	if err != nil {
		return false, fmt.Errorf("reading synchronous_standby_names: %w", err)
	}
	return unsafe, nil
}

// Unbounded tells whether a statement, a wait for a lock or an idle transaction may
// last for ever: behind a pooler that ignores what we ask for when we connect, the
// role's settings have to say it.
func (s *Store) Unbounded(ctx context.Context) (bool, error) {
	var unbounded bool
	err := s.pool.QueryRow(ctx, `SELECT '0' IN (current_setting('statement_timeout'), current_setting('lock_timeout'),
		current_setting('idle_in_transaction_session_timeout'))`).Scan(&unbounded)
	if err != nil {
		return false, fmt.Errorf("reading the timeouts: %w", err)
	}
	return unbounded, nil
}
