package pgrun

import (
	"context"
	"errors"
	"fmt"
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
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNoBouncer is returned where PgBouncer is not installed.
var ErrNoBouncer = errors.New("there is no pgbouncer in PATH or /usr/sbin (Debian: apt-get install pgbouncer)")

// Bouncer is a running PgBouncer in transaction mode before a server.
type Bouncer struct {
	server *Server
	dir    string
	port   int
	proc   *os.Process
	done   chan struct{}
}

// StartBouncer runs a PgBouncer before a server that must outlive it. settings go to
// the section [pgbouncer] of its configuration and win over ours. Everybody is let in:
// it listens on loopback only.
func StartBouncer(ctx context.Context, s *Server, settings map[string]string) (_ *Bouncer, err error) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			return nil, ErrNoBouncer
		}
	}
	b := &Bouncer{server: s}
	defer func() {
		if err != nil {
			_ = b.Stop()
			err = fmt.Errorf("pgrun: pgbouncer: %w", err)
		}
	}()
	if b.port, err = freePort(); err != nil {
		return nil, err
	}
	// Beside the socket, for the server's user can write there.
	if b.dir, err = os.MkdirTemp(s.runDir, "bouncer-"); err != nil {
		return nil, err
	}
	if err := give(b.dir, s.as); err != nil {
		return nil, err
	}
	config, err := b.writeConfig(settings)
	if err != nil {
		return nil, err
	}
	if err := b.launch(program, config); err != nil {
		return nil, err
	}
	return b, b.await(ctx)
}

func (b *Bouncer) writeConfig(settings map[string]string) (path string, err error) {
	all := map[string]string{
		"listen_addr": "127.0.0.1", "listen_port": strconv.Itoa(b.port), "unix_socket_dir": "",
		"auth_type": "any", "pool_mode": "transaction", "logfile": b.logPath(),
	}
	maps.Copy(all, settings)
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n* = host=%s port=%d user=%s\n\n[pgbouncer]\n", b.server.socketDir(), b.server.port, Superuser)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&text, "%s = %s\n", name, all[name])
	}
	path = filepath.Join(b.dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return "", err
	}
	return path, give(path, b.server.as)
}

func (b *Bouncer) launch(program, config string) error {
	cmd := exec.Command(program, "--quiet", config) //nolint:noctx // Stop ends it
	cmd.Dir = b.dir
	cmd.Env = environment()
	cmd.SysProcAttr = attributes(b.server.as, syscall.SIGTERM)
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // see Server.launch
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its log says why
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	b.proc, b.done = cmd.Process, done
	return nil
}

// await returns when it answers.
func (b *Bouncer) await(ctx context.Context) error {
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		conn, err := pgx.Connect(ctx, b.URL(""))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-b.done:
			log, _ := os.ReadFile(b.logPath())
			return fmt.Errorf("it ended at once:\n%s", lastLines(log, 15))
		case <-ctx.Done():
			return fmt.Errorf("it did not answer: %w", err)
		case <-retry.C:
		}
	}
}

func (b *Bouncer) logPath() string { return filepath.Join(b.dir, "pgbouncer.log") }

// URL is the address of a database of the server, through the bouncer; "" means
// Config.Database.
func (b *Bouncer) URL(database string) string {
	u := b.server.url(database)
	u.User = url.User(Superuser)
	u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port))
	u.RawQuery = url.Values{"sslmode": {"disable"}}.Encode()
	return u.String()
}

// Stop ends it at once, connections or not. Twice does no harm.
func (b *Bouncer) Stop() error {
	if b.proc == nil {
		return nil
	}
	_ = b.proc.Signal(syscall.SIGTERM) // fails only when it is gone already
	<-b.done
	b.proc = nil
	return nil
}
