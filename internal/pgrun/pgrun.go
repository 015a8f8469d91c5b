// Package pgrun finds PostgreSQL on this machine and runs it as a child of
// this process, for development, demonstrations and tests. Nothing has to be
// set up, and nothing is left behind: the server goes when its parent goes,
// even when the parent is killed (on Linux; elsewhere only Stop ends it).
package pgrun

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Superuser is the role that owns every cluster of this package.
const Superuser = "cardorder"

const (
	logName      = "postgres.log"
	passwordName = "password"

	// A fast shutdown writes a checkpoint; on a busy disk that takes a while.
	fastShutdown      = 20 * time.Second
	immediateShutdown = 20 * time.Second // PostgreSQL itself gives its processes 5 s, and then kills them
	portAttempts      = 5
)

// Config says which server to run. The zero value is a throw-away server for
// tests: private folder, free port, no fsync.
type Config struct {
	// BinDir holds initdb and postgres. Default: what Find finds.
	BinDir string

	// Dir keeps the cluster (data/), its log (postgres.log) and the password,
	// and is made when missing. Default: a private folder that Stop removes,
	// or, when we were killed, the next Start; without Fsync it is in memory
	// (/dev/shm) if there are 2 GB to spare.
	//
	// PostgreSQL refuses to run as root, so for root the server runs as the
	// user postgres (else nobody). When that user cannot reach Dir, as under
	// /root, the cluster lives in /var/tmp/cardorder-<uid>-<hash of Dir>
	// instead; Server.Dir tells, and so does the log.
	Dir string

	// Database is made when missing. Default: "cardorder".
	Database string

	// Fsync makes commits survive a crash of the machine. Default: false,
	// which is much faster and right only for data nobody will miss.
	Fsync bool

	// Port is the TCP port on 127.0.0.1. Default: a free one.
	Port int

	// MaxConnections is how many clients may be connected. Default: 100.
	MaxConnections int

	// Settings are further server settings; they win over ours.
	Settings map[string]string

	// Logger hears what a user should know. Default: nobody.
	Logger *slog.Logger

	choosePort func() (int, error) // for tests
}

// Server is a running PostgreSQL. It belongs to one goroutine, but for Done.
type Server struct {
	cfg       Config
	database  string
	dir       string // data, log, password
	runDir    string // always private: socket, lock
	port      int
	password  string
	as        *syscall.Credential
	locks     []*os.File
	proc      *os.Process // nil while it does not run
	exit      string      // how it ended; set before done is closed
	stopOnce  sync.Once
	stopError error

	mu   sync.Mutex
	done chan struct{} // of the last start
}

// Start runs a server and returns once it answers and the database exists.
// ctx bounds the start only; Stop ends the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	return startServer(ctx, cfg, nil)
}

// startServer makes a missing cluster anew, or as a standby of the given server.
func startServer(ctx context.Context, cfg Config, primary *Server) (_ *Server, err error) {
	if cfg.Database == "" {
		cfg.Database = "cardorder"
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 100
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.choosePort == nil {
		cfg.choosePort = freePort
	}
	if cfg.BinDir == "" {
		if cfg.BinDir, err = Find(ctx); err != nil {
			return nil, err
		}
	}
	major, err := majorVersion(ctx, cfg.BinDir)
	if err != nil {
		return nil, fmt.Errorf("pgrun: %w", err)
	}

	s := &Server{cfg: cfg, database: cfg.Database}
	defer func() {
		if err != nil {
			_ = s.Stop()
			err = fmt.Errorf("pgrun: %w", err)
		}
	}()
	if s.as, err = serverAccount(); err != nil {
		return nil, err
	}
	if err := s.openFolders(ctx, cfg); err != nil {
		return nil, err
	}
	if primary != nil {
		err = s.copyCluster(ctx, primary)
	} else {
		err = s.initCluster(ctx, cfg, major)
	}
	if err != nil {
		return nil, err
	}
	if err := s.startPostgres(ctx, cfg); err != nil {
		return nil, err
	}
	cfg.Logger.Info("postgres is up", "version", major, "bin", cfg.BinDir, "dir", s.dir, "port", s.port)
	return s, nil
}

// URL is the address of a database over TCP, password included; "" means
// Config.Database.
func (s *Server) URL(database string) string {
	u := s.url(database)
	u.User = url.UserPassword(Superuser, s.password)
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
	u.RawQuery = url.Values{"sslmode": {"disable"}}.Encode()
	return u.String()
}

// SocketURL is the address of a database over the unix socket, which is
// faster than TCP and needs no password: only our own user (and root) can
// reach it. "" means Config.Database.
func (s *Server) SocketURL(database string) string {
	u := s.url(database)
	u.User = url.User(Superuser)
	u.RawQuery = url.Values{
		"host":    {s.socketDir()},
		"port":    {strconv.Itoa(s.port)},
		"sslmode": {"disable"},
	}.Encode()
	return u.String()
}

// Dir is the folder that holds the cluster, its log and its password.
func (s *Server) Dir() string { return s.dir }

// Port is the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Done is closed when the server has ended, by Stop, by Halt or by itself. After
// another start it is another channel.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// Stop ends the server with a fast shutdown: open transactions are rolled
// back. After 20 s it gets rough. A private folder is removed. Stop may be
// called more than once.
func (s *Server) Stop() error {
	s.stopOnce.Do(func() {
		s.stopError = s.endProcess()
		if s.runDir != "" {
			s.stopError = errors.Join(s.stopError, os.RemoveAll(s.runDir))
		}
		for _, lock := range s.locks {
			lock.Close()
		}
		if s.stopError != nil {
			s.stopError = fmt.Errorf("pgrun: %w", s.stopError)
		}
	})
	return s.stopError
}

func (s *Server) endProcess() error {
	return s.shutDown([]step{{syscall.SIGINT, fastShutdown}, {syscall.SIGQUIT, immediateShutdown}})
}

// step is one way to ask for the end, and for how long to wait for it.
type step struct {
	signal   syscall.Signal
	patience time.Duration
}

// shutDown ends the process with the first step that works.
func (s *Server) shutDown(steps []step) error {
	if s.proc == nil {
		return nil
	}
	defer func() { s.proc = nil }()
	for _, step := range steps {
		_ = s.proc.Signal(step.signal) // fails only when it is gone already
		select {
		case <-s.done:
			return nil
		case <-time.After(step.patience):
		}
	}
	_ = s.proc.Kill()
	<-s.done
	return fmt.Errorf("postgres %d did not stop and was killed", s.proc.Pid)
}

func (s *Server) url(database string) *url.URL {
	if database == "" {
		database = s.database
	}
	return &url.URL{Scheme: "postgres", Path: "/" + database}
}

func (s *Server) dataDir() string   { return filepath.Join(s.dir, "data") }
func (s *Server) socketDir() string { return filepath.Join(s.runDir, "s") }
func (s *Server) logPath() string   { return filepath.Join(s.dir, logName) }

// openFolders makes and locks the private folder and the one of the cluster.
func (s *Server) openFolders(ctx context.Context, cfg Config) error {
	roots := tempRoots(cfg)
	temp, err := tempRoot(ctx, cfg.BinDir, s.as, roots)
	if err != nil {
		return err
	}
	for _, root := range roots {
		removeOrphans(root)
	}
	if s.runDir, err = os.MkdirTemp(temp, runPrefix); err != nil {
		return err
	}
	if err := openTo(s.runDir, s.as); err != nil {
		return err
	}
	lock, err := lockFolder(s.runDir)
	if err != nil {
		return err
	}
	s.locks = append(s.locks, lock)
	if err := makeOwned(s.socketDir(), s.as); err != nil {
		return err
	}

	if cfg.Dir == "" {
		s.dir = s.runDir
		return nil
	}
	if s.dir, err = keptFolder(ctx, cfg, s.as); err != nil {
		return err
	}
	if lock, err = lockKept(ctx, cfg.Logger, s.dir); err != nil {
		return err
	}
	s.locks = append(s.locks, lock)
	return nil
}

// initCluster makes the cluster, unless there is one: then it checks that
// these binaries can run it and that nobody else does.
func (s *Server) initCluster(ctx context.Context, cfg Config, major int) error {
	passwordFile := filepath.Join(s.dir, passwordName)
	version, err := os.ReadFile(filepath.Join(s.dataDir(), "PG_VERSION"))
	if err == nil {
		if made := strings.TrimSpace(string(version)); made != strconv.Itoa(major) {
			return fmt.Errorf("%s was made by PostgreSQL %s, but %s is PostgreSQL %d: put PostgreSQL %[2]s first in PATH, or remove the folder to start afresh",
				s.dir, made, cfg.BinDir, major)
		}
		password, err := os.ReadFile(passwordFile)
		if err != nil {
			return fmt.Errorf("the cluster's password is lost, remove %s to start afresh: %w", s.dir, err)
		}
		s.password = string(password)
		return checkPostmaster(s.dataDir())
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	cfg.Logger.Info("making a new postgres cluster", "dir", s.dir)
	s.password = rand.Text()
	if err := os.WriteFile(passwordFile, []byte(s.password), 0o600); err != nil {
		return err
	}
	if err := give(passwordFile, s.as); err != nil {
		return err
	}
	// Built aside and renamed: a cluster is either whole or not there.
	fresh := s.dataDir() + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := makeOwned(fresh, s.as); err != nil {
		return err
	}
	args := []string{
		"-D", fresh, "-U", Superuser, "-E", "UTF8", "--locale=C", "--no-instructions",
		"--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile=" + passwordFile,
	}
	if !cfg.Fsync {
		args = append(args, "--no-sync")
	}
	if out, err := run(ctx, s.as, s.dir, filepath.Join(cfg.BinDir, "initdb"), args...); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return os.Rename(fresh, s.dataDir())
}

// startPostgres starts the server on a port. Another process may take a free
// port before postgres binds it: then another port is tried.
func (s *Server) startPostgres(ctx context.Context, cfg Config) error {
	for attempt := 1; ; attempt++ {
		s.port = cfg.Port
		if cfg.Port == 0 {
			var err error
			if s.port, err = cfg.choosePort(); err != nil {
				return err
			}
		}
		err := s.launch(cfg)
		if err == nil {
			err = s.awaitDatabase(ctx)
		}
		if err == nil {
			return nil
		}
		stopErr := s.endProcess()
		log, _ := os.ReadFile(s.logPath())
		taken := bytes.Contains(log, []byte("Address already in use"))
		if taken && cfg.Port == 0 && attempt < portAttempts && ctx.Err() == nil {
			cfg.Logger.Info("postgres port was taken, trying another", "port", s.port)
			continue
		}
		if taken {
			err = fmt.Errorf("port %d of 127.0.0.1 is taken: %w", s.port, err)
		}
		return errors.Join(fmt.Errorf("%w\nlast lines of %s:\n%s", err, s.logPath(), lastLines(log, 15)), stopErr)
	}
}

// launch starts postgres directly, not by pg_ctl, which would detach it.
func (s *Server) launch(cfg Config) error {
	// The log of the start before is worth keeping after a crash, older ones are not.
	if err := os.Rename(s.logPath(), s.logPath()+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	// When we are killed: an orderly end for data that matters, the fastest
	// end for data that does not.
	orphaned := syscall.SIGINT
	if !cfg.Fsync {
		orphaned = syscall.SIGQUIT
	}
	cmd := exec.Command(filepath.Join(cfg.BinDir, "postgres"), s.args(cfg)...) //nolint:noctx // Stop ends it, with a shutdown and not a kill
	cmd.Dir = s.dir
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes(s.as, orphaned)
	// The server and all its backends inherit the locks, so that a folder
	// stays locked as long as any of them lives, with or without us.
	cmd.ExtraFiles = s.locks

	done := make(chan struct{})
	started := make(chan error)
	go func() {
		// The kernel ties the signal for orphans to the thread that forked,
		// not to the process: that thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the state says it all
			s.exit = cmd.ProcessState.String()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.proc = cmd.Process
	s.mu.Lock()
	s.done = done
	s.mu.Unlock()
	return nil
}

func (s *Server) args(cfg Config) []string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.port),
		"unix_socket_directories": s.socketDir(),
		"max_connections":         strconv.Itoa(cfg.MaxConnections),
		"timezone":                "UTC",
		"log_timezone":            "UTC",
	}
	if !cfg.Fsync {
		maps.Copy(settings, map[string]string{
			"fsync":              "off",
			"synchronous_commit": "off",
			"full_page_writes":   "off",
			"wal_level":          "minimal",
			"max_wal_senders":    "0",
		})
	}
	maps.Copy(settings, cfg.Settings)
	args := []string{"-D", s.dataDir()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// awaitDatabase returns when the server answers and has the database.
// It asks over the socket: in our private folder nobody else can answer.
func (s *Server) awaitDatabase(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", s.database).Scan(&exists); err != nil || exists {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{s.database}.Sanitize())
	return err
}

func (s *Server) connect(ctx context.Context) (*pgx.Conn, error) {
	const cannotConnectNow = "57P03" // still starting or recovering
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.SocketURL("postgres"))
		if err == nil {
			return conn, nil
		}
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code != cannotConnectNow {
			return nil, err
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("postgres ended: %s", s.exit)
		case <-ctx.Done():
			return nil, fmt.Errorf("postgres did not answer: %w", context.Cause(ctx))
		case <-retry.C:
		}
	}
}

// run runs a short-lived command as the server's user and returns its output.
func run(ctx context.Context, as *syscall.Credential, dir, path string, args ...string) (string, error) {
	runtime.LockOSThread() // see launch
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = environment()
	cmd.SysProcAttr = attributes(as, syscall.SIGTERM)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = immediateShutdown
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return string(out), err
}

// environment is ours without what would change how postgres behaves.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "PG") || strings.HasPrefix(entry, "LC_") || strings.HasPrefix(entry, "LANG")
	})
	return append(env, "LC_ALL=C") // messages in English: we read them
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func lastLines(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
