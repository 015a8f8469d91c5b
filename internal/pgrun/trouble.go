package pgrun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Shutdown is a way to end a server.
type Shutdown int

const (
	// Fast rolls open transactions back and writes everything down.
	Fast Shutdown = iota
	// Immediate ends at once, as a crash would: the next start recovers from the log.
	Immediate
)

// Halt ends the server and keeps everything for Resume. It may have ended by itself.
func (s *Server) Halt(how Shutdown) error {
	steps := []step{{syscall.SIGINT, fastShutdown}, {syscall.SIGQUIT, immediateShutdown}}
	if how == Immediate {
		steps = steps[1:]
	}
	if err := s.shutDown(steps); err != nil {
		return fmt.Errorf("pgrun: %w", err)
	}
	return nil
}

// Resume starts a halted server at the address that it had.
func (s *Server) Resume(ctx context.Context) error {
	cfg := s.cfg
	cfg.Port = s.port
	if err := s.startPostgres(ctx, cfg); err != nil {
		return fmt.Errorf("pgrun: %w", err)
	}
	return nil
}

// Restart is Halt and Resume.
func (s *Server) Restart(ctx context.Context, how Shutdown) error {
	if err := s.Halt(how); err != nil {
		return err
	}
	return s.Resume(ctx)
}

// Standby copies the server and starts the copy, which follows it and can be read
// until it is promoted. Its name in synchronous_standby_names is "standby". What cfg
// leaves out is as on the server, which must have wal_level = replica and
// max_wal_senders.
func (s *Server) Standby(ctx context.Context, cfg Config) (*Server, error) {
	cfg.Database = s.database
	if cfg.BinDir == "" {
		cfg.BinDir = s.cfg.BinDir
	}
	if cfg.MaxConnections == 0 { // a standby needs as many as its primary has
		cfg.MaxConnections = s.cfg.MaxConnections
	}
	if cfg.Settings == nil {
		cfg.Settings = s.cfg.Settings
	}
	return startServer(ctx, cfg, s)
}

// Promote makes a standby the primary of a new timeline. Nothing is done about the
// old primary.
func (s *Server) Promote(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("pgrun: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var promoted bool
	err = conn.QueryRow(ctx, "SELECT pg_promote()").Scan(&promoted)
	if err == nil && !promoted {
		err = errors.New("the standby was not promoted in time")
	}
	if err != nil {
		return fmt.Errorf("pgrun: %w", err)
	}
	return nil
}

// Backup copies the server as it is now, for Restore.
func (s *Server) Backup(ctx context.Context, name string) error {
	if err := s.baseBackup(ctx, s, s.backupDir(name)); err != nil {
		return fmt.Errorf("pgrun: %w", err)
	}
	return nil
}

// Restore takes the server back to a backup, as a point-in-time recovery does: what
// came after it is gone, and a new timeline begins. The backup is used up.
func (s *Server) Restore(ctx context.Context, name string) error {
	if err := s.restore(ctx, name); err != nil {
		return fmt.Errorf("pgrun: restoring %s: %w", name, err)
	}
	return nil
}

func (s *Server) restore(ctx context.Context, name string) error {
	if err := s.Halt(Fast); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dataDir()); err != nil {
		return err
	}
	if err := os.Rename(s.backupDir(name), s.dataDir()); err != nil {
		return err
	}
	// There is no archive: what the backup holds of the log is all there is.
	settings, err := os.OpenFile(filepath.Join(s.dataDir(), "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = settings.WriteString("restore_command = 'false'\n")
	if err := errors.Join(err, settings.Close()); err != nil {
		return err
	}
	recoverySignal := filepath.Join(s.dataDir(), "recovery.signal")
	if err := os.WriteFile(recoverySignal, nil, 0o600); err != nil {
		return err
	}
	if err := give(recoverySignal, s.as); err != nil {
		return err
	}
	if err := s.Resume(ctx); err != nil {
		return err
	}
	return s.awaitRecovered(ctx)
}

// awaitRecovered returns when the server takes writes.
func (s *Server) awaitRecovered(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		var recovering bool
		if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering); err != nil || !recovering {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the recovery did not end: %w", context.Cause(ctx))
		case <-again.C:
		}
	}
}

func (s *Server) backupDir(name string) string { return filepath.Join(s.dir, "backup-"+name) }

// copyCluster makes the cluster of a standby.
func (s *Server) copyCluster(ctx context.Context, primary *Server) error {
	s.password = primary.password
	return s.baseBackup(ctx, primary, s.dataDir(), "--write-recovery-conf")
}

func (s *Server) baseBackup(ctx context.Context, from *Server, to string, args ...string) error {
	if err := makeOwned(to, s.as); err != nil {
		return err
	}
	args = append(args, "--pgdata="+to, "--checkpoint=fast", "--wal-method=stream", "--no-sync",
		"--dbname=host="+from.socketDir()+" port="+strconv.Itoa(from.port)+" user="+Superuser+" application_name=standby")
	program, err := baseBackupProgram(s.cfg.BinDir)
	if err != nil {
		return err
	}
	out, err := run(ctx, s.as, s.dir, program, args...)
	if err != nil {
		return fmt.Errorf("pg_basebackup: %w\n%s", err, out)
	}
	return nil
}

// ErrNoBaseBackup is returned where PostgreSQL came without pg_basebackup: the npm
// package has a server only.
var ErrNoBaseBackup = errors.New("there is no pg_basebackup beside PostgreSQL's initdb")

// baseBackupProgram looks beside initdb, also where a link in PATH leads to.
func baseBackupProgram(binDir string) (string, error) {
	initdb, err := filepath.EvalSymlinks(filepath.Join(binDir, "initdb"))
	if err != nil {
		return "", err
	}
	for _, dir := range []string{binDir, filepath.Dir(initdb)} {
		program := filepath.Join(dir, "pg_basebackup")
		if _, err := os.Stat(program); err == nil {
			return program, nil
		}
	}
	return "", ErrNoBaseBackup
}
