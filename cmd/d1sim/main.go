// Command d1sim runs the simulator of Thales D1 as a process: the D1 side on one listener, the management port on
// another. It makes no card and keeps everything but its encryption key in memory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cardorder/internal/d1sim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr, func(d1, management net.Addr) {}); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "d1sim:", err)
		}
		os.Exit(1)
	}
}

// run serves until ctx ends. It tells when it is up, and where, by calling ready.
func run(ctx context.Context, args []string, output io.Writer, ready func(d1, management net.Addr)) error {
	flags := flag.NewFlagSet("d1sim", flag.ContinueOnError)
	flags.SetOutput(output)
	configFile := flags.String("config", "", "YAML `file` of issuers and settings (required)")
	listen := flags.String("listen", "127.0.0.1:8180", "`address` of the D1 side")
	managementListen := flags.String("management-listen", "127.0.0.1:8181", "`address` of the management port")
	keyFile := flags.String("encryption-key-file", "",
		"private JWK `file`, made when missing with its public half beside it as <file>.pub.json; empty: a new key at each start")
	allowRemote := flags.Bool("allow-remote", false, "listen on other addresses than loopback too; never where real cards are ordered")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	}

	logger := slog.New(slog.NewTextHandler(output, nil))
	cfg, err := loadConfig(*configFile)
	if err != nil {
		return err
	}
	cfg.Logger = logger
	if *keyFile != "" {
		if cfg.EncryptionKey, cfg.EncryptionKeyID, err = loadOrMakeKey(*keyFile); err != nil {
			return err
		}
	}
	sim, err := d1sim.New(cfg)
	if err != nil {
		return err
	}

	d1, err := openListener(ctx, *listen, *allowRemote)
	if err != nil {
		return err
	}
	defer d1.Close()
	management, err := openListener(ctx, *managementListen, *allowRemote)
	if err != nil {
		return err
	}
	defer management.Close()
	logger.Info("listening", slog.String("d1", d1.Addr().String()), slog.String("management", management.Addr().String()),
		slog.Int("issuers", len(cfg.Issuers)), slog.String("encryption_kid", sim.EncryptionKey().KeyID))
	ready(d1.Addr(), management.Addr())
	return serve(ctx, sim, d1, management)
}

// serve runs the simulator and both listeners until ctx ends or one of them fails.
func serve(ctx context.Context, sim *d1sim.Sim, d1, management net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	servers := []*http.Server{newServer(ctx, sim.Handler()), newServer(ctx, sim.ManagementHandler())}
	ended := make(chan error, len(servers))
	for i, listener := range []net.Listener{d1, management} {
		go func() {
			ended <- servers[i].Serve(listener)
			cancel()
		}()
	}
	errs := []error{sim.Run(ctx)}

	// Long polls and delayed answers end with ctx, so what is left ends soon.
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	for _, server := range servers {
		errs = append(errs, server.Shutdown(grace))
	}
	for range servers {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func newServer(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
}

// openListener refuses to be reached from other machines unless that was asked for: what looks like the bureau and makes
// no card must not be taken for it.
func openListener(ctx context.Context, address string, allowRemote bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(host)
	if loopback := host == "localhost" || ip != nil && ip.IsLoopback(); !loopback && !allowRemote {
		return nil, fmt.Errorf("%s is not a loopback address: this is a simulator; --allow-remote listens all the same", address)
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", address)
}
