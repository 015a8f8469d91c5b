package pgrun

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Some tests need another process: this binary again, in a role.
const roleEnv = "PGRUN_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "parent": // starts a server, tells about it, and waits to be killed
		s, err := Start(context.Background(), Config{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		json.NewEncoder(os.Stdout).Encode(orphan{s.runDir, s.SocketURL("")})
		io.Copy(io.Discard, os.Stdin)
	case "whole life":
		s, err := Start(context.Background(), Config{})
		if err == nil {
			err = s.Stop()
		}
		fmt.Print(os.Geteuid(), " ", err)
	}
}

type orphan struct{ RunDir, URL string }

// sharedDir is a temporary folder that the server's user can reach even when
// the tests run as root; t.TempDir is not.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgrun-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ask runs one statement in a session of its own.
func ask(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var answer string
	if err := conn.QueryRow(t.Context(), sql).Scan(&answer); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error lacks %q: %v", part, err)
		}
	}
}

func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func TestStartStop(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Database: "it's \"odd\"", MaxConnections: 17, Settings: map[string]string{"work_mem": "5MB"}})

	for _, url := range []string{s.URL(""), s.SocketURL("")} {
		if got := ask(t, url, "SELECT current_database()"); got != `it's "odd"` {
			t.Errorf("%s: in database %s", url, got)
		}
	}
	for setting, want := range map[string]string{
		"max_connections": "17", "work_mem": "5MB", "fsync": "off", "server_encoding": "UTF8", "lc_collate": "C", "timezone": "UTC",
	} {
		if got := ask(t, s.SocketURL("postgres"), "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s = %s, want %s", setting, got, want)
		}
	}

	group, err := syscall.Getpgid(s.proc.Pid)
	if err != nil || group == syscall.Getpgrp() {
		t.Errorf("postgres shares our process group %d, Ctrl-C would reach it (%v)", group, err)
	}

	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-s.Done():
	default:
		t.Error("stopped, but not done")
	}
	if !gone(s.runDir) {
		t.Errorf("%s is still there", s.runDir)
	}
	if _, err := pgx.Connect(t.Context(), s.URL("")); err == nil {
		t.Error("a stopped server answers")
	}
}

func TestTCPNeedsPassword(t *testing.T) {
	t.Parallel()
	s := start(t, Config{})
	u, err := url.Parse(s.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(Superuser, "guess")
	_, err = pgx.Connect(t.Context(), u.String())
	wantError(t, err, "password authentication failed")
}

func TestDataIsKept(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: filepath.Join(sharedDir(t), "dev"), Fsync: true}
	s := start(t, cfg)
	ask(t, s.URL(""), "CREATE TABLE kept (a int)")
	if got := ask(t, s.URL(""), "SHOW fsync"); got != "on" {
		t.Errorf("fsync = %s", got)
	}
	before := s.password
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	s = start(t, cfg)
	if got := ask(t, s.URL(""), "SELECT count(*)::text FROM kept"); got != "0" {
		t.Errorf("count = %s", got)
	}
	if s.password != before {
		t.Error("the password changed")
	}
	for _, name := range []string{logName, logName + ".1", passwordName} {
		info, err := os.Stat(filepath.Join(s.Dir(), name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestStartsAfterCrash(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: sharedDir(t), Fsync: true}
	s := start(t, cfg)
	ask(t, s.URL(""), "CREATE TABLE kept (a int)")
	if err := s.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if postmasterPID(s.dataDir()) == 0 {
		t.Fatal("no stale postmaster.pid, nothing to test")
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, cfg)
	if got := ask(t, s.URL(""), "SELECT count(*)::text FROM kept"); got != "0" {
		t.Errorf("count = %s", got)
	}
}

func TestStartsWhenStalePIDIsAStrangers(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/cwd"); err != nil {
		t.Skip("needs /proc")
	}
	cfg := Config{Dir: sharedDir(t)}
	s := start(t, cfg)
	file := filepath.Join(s.dataDir(), "postmaster.pid")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	stranger := exec.Command("cat") // of the server's user: others postgres ignores itself
	stranger.SysProcAttr = attributes(s.as, syscall.SIGKILL)
	stdin, err := stranger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); stranger.Wait() })
	_, rest, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(file, []byte(strconv.Itoa(stranger.Process.Pid)+"\n"+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := give(file, s.as); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
}

func TestFolderInUse(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: sharedDir(t)}
	s := start(t, cfg)
	pid := strconv.Itoa(s.proc.Pid)

	_, err := Start(t.Context(), cfg)
	wantError(t, err, s.Dir(), "in use", pid)

	// A server that somebody started by hand holds no lock of ours.
	if err := os.Remove(filepath.Join(s.Dir(), lockName)); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), cfg)
	wantError(t, err, s.Dir(), "in use", pid)
	ask(t, s.URL(""), "SELECT 'unharmed'")
}

func TestOtherVersion(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: sharedDir(t)}
	data := filepath.Join(cfg.Dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), cfg)
	wantError(t, err, cfg.Dir, "made by PostgreSQL 12")
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).Port

	_, err = Start(t.Context(), Config{Port: taken})
	wantError(t, err, fmt.Sprintf("port %d of 127.0.0.1 is taken", taken))

	// Somebody was faster: another port is tried.
	choices := 0
	s := start(t, Config{choosePort: func() (int, error) {
		if choices++; choices == 1 {
			return taken, nil
		}
		return freePort()
	}})
	if choices != 2 || s.Port() == taken {
		t.Errorf("%d choices, port %d", choices, s.Port())
	}
	ask(t, s.URL(""), "SELECT 'up'")
}

func TestFailedStart(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: sharedDir(t), Settings: map[string]string{"shared_buffers": "plenty"}}
	_, err := Start(t.Context(), cfg)
	wantError(t, err, "exit status 1", "last lines of", `invalid value for parameter "shared_buffers": "plenty"`)

	ctx, cancel := context.WithCancel(t.Context())
	cfg = Config{Dir: cfg.Dir, choosePort: func() (int, error) { cancel(); return freePort() }}
	if _, err := Start(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	start(t, Config{Dir: cfg.Dir}) // neither left anything in the way
}

func TestKilledParentLeavesNothing(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(exe)
	parent.Env = append(os.Environ(), roleEnv+"=parent")
	parent.Stderr = os.Stderr
	stdin, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var left orphan
	if err := json.NewDecoder(bufio.NewReader(stdout)).Decode(&left); err != nil {
		t.Fatal(err)
	}
	ask(t, left.URL, "SELECT 'up'")
	if _, err := lockFolder(left.RunDir); !errors.Is(err, errLocked) {
		t.Fatalf("lock: %v", err)
	}

	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait()
	// The postmaster and its children hold the lock as long as one of them lives.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lock, err := waitForLock(ctx, left.RunDir)
	if err != nil {
		t.Fatalf("postgres outlived its parent: %v", err)
	}
	lock.Close()

	// The next start clears the folder away.
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(left.RunDir, long, long); err != nil {
		t.Fatal(err)
	}
	removeOrphans(filepath.Dir(left.RunDir))
	if !gone(left.RunDir) {
		t.Errorf("%s is still there", left.RunDir)
	}
}

func TestOrphanedFolderInUseStays(t *testing.T) {
	t.Parallel()
	s := start(t, Config{})
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.runDir, long, long); err != nil {
		t.Fatal(err)
	}
	removeOrphans(filepath.Dir(s.runDir))
	ask(t, s.SocketURL(""), "SELECT 'still here'")
}

func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := sharedDir(t)
	// go test's own is in a closed folder. Another process copies it: a child that
	// is forked here meanwhile would keep a file of ours open for writing (ETXTBSY).
	binary := filepath.Join(dir, "pgrun.test")
	if out, err := exec.CommandContext(t.Context(), "install", "-m", "0755", exe, binary).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	exe = binary
	uid := os.Geteuid()
	user := exec.CommandContext(t.Context(), exe)
	user.Dir = dir
	user.Env = append(os.Environ(), roleEnv+"=whole life", "HOME=/nonexistent")
	if uid == 0 { // otherwise the test's own user is an ordinary one
		uid = 65534 // nobody
		user.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if out, err := user.CombinedOutput(); err != nil || string(out) != fmt.Sprintf("%d <nil>", uid) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestUnreachableDirAsRoot(t *testing.T) {
	t.Parallel()
	if as, err := serverAccount(); err != nil || as == nil {
		t.Skip("an ordinary user reaches its own folders")
	}
	dir := filepath.Join(t.TempDir(), "dev") // t.TempDir is closed to other users
	cfg := Config{Dir: dir}
	s := start(t, cfg)
	t.Cleanup(func() { os.RemoveAll(s.Dir()) })
	if !strings.HasPrefix(s.Dir(), "/var/tmp/cardorder-0-") || !gone(dir) {
		t.Errorf("data in %s", s.Dir())
	}
	ask(t, s.URL(""), "CREATE TABLE kept (a int)")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, cfg)
	if got := ask(t, again.URL(""), "SELECT count(*)::text FROM kept"); got != "0" {
		t.Errorf("count = %s", got)
	}
}
