// Package pgtest gives every test a PostgreSQL database of its own, cloned
// from a template that was migrated once.
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m, store.Migrate)) }
//
//	func TestX(t *testing.T) {
//		t.Parallel()
//		url := pgtest.New(t)
//	}
//
// The server is found and started by pgrun at the first use and ends with the
// test binary. With CARDORDER_TEST_DATABASE_URL set, the server behind that
// URL is used instead; its role must be allowed to create databases.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"cardorder/internal/pgrun"

	"github.com/jackc/pgx/v5"
)

// EnvURL names the variable with the URL of a server to use.
const EnvURL = "CARDORDER_TEST_DATABASE_URL"

const (
	startTimeout = 5 * time.Minute // the first start on a machine may download PostgreSQL
	dropTimeout  = time.Minute

	// maxConnections is enough for many tests at once with a pool each.
	maxConnections = 400
)

// suite is what the tests of one binary share.
type suite struct {
	migrate func(ctx context.Context, url string) error

	server   func() (*server, error) // once
	template func() (string, error)  // once
	stop     func() error
}

var current *suite

// Main runs the tests of a package and then ends what New and NewEmpty
// started. It returns the exit code. migrate brings an empty database to the
// state that New gives to each test; it runs at most once.
func Main(m *testing.M, migrate func(ctx context.Context, url string) error) int {
	current = newSuite(os.Getenv(EnvURL), migrate)
	code := m.Run()
	if err := current.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	return code
}

// New returns the URL of a fresh, migrated database. It is dropped when the
// test ends, connections or not, but kept when the test failed.
func New(t testing.TB) string {
	t.Helper()
	s := mustCurrent(t)
	template, err := s.template()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return s.newDatabase(t, template)
}

// NewEmpty is New without the migration.
func NewEmpty(t testing.TB) string {
	t.Helper()
	return mustCurrent(t).newDatabase(t, "template0")
}

func mustCurrent(t testing.TB) *suite {
	t.Helper()
	if current == nil {
		t.Fatal("pgtest: call pgtest.Main from TestMain")
	}
	return current
}

// server is where databases are made.
type server struct {
	admin *url.URL
	run   *pgrun.Server // nil when the URL was given
}

func newSuite(givenURL string, migrate func(ctx context.Context, url string) error) *suite {
	s := &suite{migrate: migrate, stop: func() error { return nil }}
	s.server = sync.OnceValues(func() (*server, error) {
		srv, err := openServer(givenURL)
		if err == nil && srv.run != nil {
			s.stop = srv.run.Stop
		}
		return srv, err
	})
	s.template = sync.OnceValues(s.makeTemplate)
	return s
}

func openServer(givenURL string) (*server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if givenURL != "" {
		admin, err := url.Parse(givenURL)
		if err != nil || admin.Scheme == "" {
			return nil, errors.New(EnvURL + " is not a URL") // which may hold a password
		}
		return &server{admin: admin}, nil
	}
	run, err := pgrun.Start(ctx, pgrun.Config{Database: "postgres", MaxConnections: maxConnections})
	if err != nil {
		return nil, err
	}
	admin, err := url.Parse(run.SocketURL(""))
	return &server{admin: admin, run: run}, err
}

// url is the URL of a database of the server.
func (s *server) url(database string) string {
	u := *s.admin
	u.Path = "/" + database
	return u.String()
}

// exec runs one statement outside of any transaction.
func (s *server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.admin.String())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

func (s *server) create(ctx context.Context, name, template string) error {
	sql := "CREATE DATABASE " + quote(name) + " TEMPLATE " + quote(template)
	if s.run != nil {
		// Takes half the time of the default, measured, as long as fsync is off.
		sql += " STRATEGY FILE_COPY"
	}
	return s.exec(ctx, sql)
}

func (s *server) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
	defer cancel()
	return s.exec(ctx, "DROP DATABASE "+quote(name)+" WITH (FORCE)")
}

func (s *suite) makeTemplate() (string, error) {
	srv, err := s.server()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	name := databaseName("template")
	if err := srv.create(ctx, name, "template0"); err != nil {
		return "", err
	}
	if srv.run == nil {
		s.stop = func() error { return srv.drop(name) }
	}
	if err := s.migrate(ctx, srv.url(name)); err != nil {
		return "", fmt.Errorf("migrate: %w", err)
	}
	// A template with anybody connected, autovacuum included, cannot be cloned.
	return name, srv.exec(ctx, "ALTER DATABASE "+quote(name)+" ALLOW_CONNECTIONS false")
}

func (s *suite) newDatabase(t testing.TB, template string) string {
	t.Helper()
	srv, err := s.server()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	name := databaseName(t.Name())
	if err := srv.create(t.Context(), name, template); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	address := srv.url(name)
	t.Cleanup(func() {
		if !t.Failed() {
			if err := srv.drop(name); err != nil {
				t.Errorf("pgtest: %v", err)
			}
			return
		}
		t.Logf("pgtest: database kept: %s", address)
		if srv.run != nil {
			t.Logf("pgtest: its server ends with this test binary; set %s to a server that stays to look into it", EnvURL)
		}
	})
	return address
}

// databaseName makes a name that tells its test and is unique on a shared server.
func databaseName(test string) string {
	const maxTest = 63 - len("test__") - 10
	plain := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, strings.ToLower(test))
	if len(plain) > maxTest {
		plain = plain[:maxTest]
	}
	return "test_" + plain + "_" + strings.ToLower(rand.Text()[:10])
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
