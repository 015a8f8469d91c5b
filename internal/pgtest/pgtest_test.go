package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"cardorder/internal/pgrun"

	"github.com/jackc/pgx/v5"
)

var migrations atomic.Int32

func TestMain(m *testing.M) { os.Exit(Main(m, migrate)) }

func migrate(ctx context.Context, url string) error {
	migrations.Add(1)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE TABLE cards (id int PRIMARY KEY)")
	return err
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func query[T any](t *testing.T, url, sql string) T {
	t.Helper()
	var answer T
	if err := connect(t, url).QueryRow(t.Context(), sql).Scan(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestDatabasesAreIsolated(t *testing.T) {
	t.Parallel()
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			conn := connect(t, New(t))
			// A row of another test would break the key.
			if _, err := conn.Exec(t.Context(), "INSERT INTO cards VALUES (1)"); err != nil {
				t.Error(err)
			}
			if n := migrations.Load(); n != 1 {
				t.Errorf("migrated %d times", n)
			}
		})
	}
}

func TestNewEmpty(t *testing.T) {
	t.Parallel()
	if n := query[int](t, NewEmpty(t), "SELECT count(*) FROM pg_tables WHERE tablename = 'cards'"); n != 0 {
		t.Error("migrated")
	}
}

// fakeT is a test that ends when told to, failed or not.
type fakeT struct {
	testing.TB
	failed   bool
	log      strings.Builder
	cleanups []func()
}

func (f *fakeT) Failed() bool            { return f.failed }
func (f *fakeT) Cleanup(fn func())       { f.cleanups = append(f.cleanups, fn) }
func (f *fakeT) Logf(s string, a ...any) { fmt.Fprintf(&f.log, s+"\n", a...) }

func TestDroppedUnlessFailed(t *testing.T) {
	t.Parallel()
	for _, failed := range []bool{false, true} {
		fake := &fakeT{TB: t, failed: failed}
		url := New(fake)
		name := query[string](t, url, "SELECT current_database()") // the connection stays open
		for _, fn := range fake.cleanups {
			fn()
		}
		kept := query[bool](t, NewEmpty(t), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = '"+name+"')")
		if kept != failed {
			t.Errorf("failed %v, kept %v", failed, kept)
		}
		if told := strings.Contains(fake.log.String(), url); told != failed {
			t.Errorf("failed %v, log %q", failed, fake.log.String())
		}
	}
}

func TestGivenServer(t *testing.T) {
	t.Parallel()
	server, err := pgrun.Start(t.Context(), pgrun.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	databases := func() int { return query[int](t, server.URL(""), "SELECT count(*) FROM pg_database") }
	before := databases()

	s := newSuite(server.URL(""), migrate0)
	fake := &fakeT{TB: t}
	template, err := s.template()
	if err != nil {
		t.Fatal(err)
	}
	if got := query[string](t, s.newDatabase(fake, template), "SHOW port"); got != fmt.Sprint(server.Port()) {
		t.Errorf("port %s, want %d", got, server.Port())
	}
	if n := databases(); n != before+2 {
		t.Errorf("%d databases, want a template and a test's", n-before)
	}
	fake.cleanups[0]()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if n := databases(); n != before {
		t.Errorf("%d databases left behind", n-before)
	}
	select {
	case <-server.Done():
		t.Error("a server that is not ours was stopped")
	default:
	}
}

func migrate0(context.Context, string) error { return nil }

func TestFailedMigrationFailsEveryTest(t *testing.T) {
	t.Parallel()
	s := newSuite("", func(context.Context, string) error { return errors.New("no such column") })
	defer func() { s.stop() }()
	for range 2 {
		if _, err := s.template(); err == nil || !strings.Contains(err.Error(), "no such column") {
			t.Errorf("template: %v", err)
		}
	}
}

func TestNothingUsedNothingStarted(t *testing.T) {
	t.Parallel()
	if err := newSuite("", nil).stop(); err != nil {
		t.Error(err)
	}
}

func TestFaultyURLIsNotRepeated(t *testing.T) {
	t.Parallel()
	_, err := newSuite("host=db password=hunter2", nil).server()
	if err == nil || !strings.Contains(err.Error(), EnvURL) || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func TestDatabaseName(t *testing.T) {
	t.Parallel()
	a, b := databaseName("TestÄ/B c"+strings.Repeat("x", 99)), databaseName("x")
	if len(a) > 63 || !strings.HasPrefix(a, "test_test__b_cxx") || b == databaseName("x") {
		t.Error(a, b)
	}
}

func BenchmarkNew(b *testing.B) {
	NewEmpty(b) // starts the server
	for b.Loop() {
		fake := &fakeT{TB: b}
		New(fake)
		fake.cleanups[0]()
	}
}
