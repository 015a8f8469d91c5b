package pgrun

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// durable lets a server be copied, and keeps every commit through an immediate end.
var durable = map[string]string{"wal_level": "replica", "max_wal_senders": "4", "synchronous_commit": "on"}

// change runs statements that return nothing.
func change(t *testing.T, url string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// until asks until the answer is the wanted one.
func until(t *testing.T, url, sql, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for ask(t, url, sql) != want {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("%s never became %s", sql, want)
		}
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Settings: durable})
	change(t, s.SocketURL(""), "CREATE TABLE kept (id int)")
	for _, how := range []Shutdown{Fast, Immediate} {
		url, before := s.URL(""), s.Done()
		change(t, url, "INSERT INTO kept VALUES (1)")
		if err := s.Restart(t.Context(), how); err != nil {
			t.Fatal(err)
		}
		select {
		case <-before:
		default:
			t.Error("Done of the start before tells of no end")
		}
		if s.URL("") != url {
			t.Errorf("the address changed from %s to %s", url, s.URL(""))
		}
	}
	if n := ask(t, s.URL(""), "SELECT count(*)::text FROM kept"); n != "2" {
		t.Errorf("%s rows, want 2", n)
	}
}

func TestHaltedServerStops(t *testing.T) {
	t.Parallel()
	s := start(t, Config{})
	if err := s.Halt(Immediate); err != nil {
		t.Fatal(err)
	}
	if err := s.Halt(Fast); err != nil {
		t.Errorf("halting twice: %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if !gone(s.runDir) {
		t.Error("the private folder is left")
	}
}

func TestStandbyFollowsAndIsPromoted(t *testing.T) {
	t.Parallel()
	primary := start(t, Config{Settings: durable})
	standby, err := primary.Standby(t.Context(), Config{})
	if errors.Is(err, ErrNoBaseBackup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	change(t, primary.SocketURL(""), "ALTER SYSTEM SET synchronous_standby_names = 'standby'", "SELECT pg_reload_conf()")
	until(t, primary.SocketURL(""), "SELECT sync_state FROM pg_stat_replication", "sync")
	change(t, primary.URL(""), "CREATE TABLE kept AS SELECT 1 AS id")

	// The last commit is on the standby, however the primary ended.
	if err := primary.Halt(Immediate); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	change(t, standby.URL(""), "INSERT INTO kept VALUES (2)")
	if n := ask(t, standby.URL(""), "SELECT count(*)::text FROM kept"); n != "2" {
		t.Errorf("%s rows, want 2", n)
	}
	if timeline := ask(t, standby.URL(""), "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"); timeline != "00000002" {
		t.Errorf("the timeline is %s, want 2", timeline)
	}
}

func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Settings: durable})
	change(t, s.URL(""), "CREATE TABLE kept AS SELECT 1 AS id")
	if err := s.Backup(t.Context(), "monday"); errors.Is(err, ErrNoBaseBackup) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	change(t, s.URL(""), "INSERT INTO kept VALUES (2)")
	if err := s.Restore(t.Context(), "monday"); err != nil {
		t.Fatal(err)
	}
	change(t, s.URL(""), "INSERT INTO kept VALUES (3)")
	if ids := ask(t, s.URL(""), "SELECT string_agg(id::text, ',' ORDER BY id) FROM kept"); ids != "1,3" {
		t.Errorf("ids %s, want 1,3", ids)
	}
	if timeline := ask(t, s.URL(""), "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"); timeline != "00000002" {
		t.Errorf("the timeline is %s, want 2", timeline)
	}
	// What the restore set is gone for the next start.
	if err := s.Restart(t.Context(), Fast); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.Restore(t.Context(), "tuesday"), "restoring tuesday")
}
