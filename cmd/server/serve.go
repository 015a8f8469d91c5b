package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
	_ "time/tzdata" // for programs; not every image has time zones

	"cardorder/internal/api"
	"cardorder/internal/app"
	"cardorder/internal/config"
	"cardorder/internal/local"
	"cardorder/internal/store"
)

// serve runs the service. SIGHUP makes it read its programs file and certificates again.
func serve(ctx context.Context, args []string, _, stderr io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	path := flags.String("config", "", "the configuration `file` (required)")
	migrateFirst := flags.Bool("migrate", false, "bring the schema up to date before starting")
	if err := parse(flags, args, stderr, "config"); err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	level, err := cfg.Log.Slog()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level}))
	summary, err := cfg.Summary()
	if err != nil {
		return err
	}
	log.Info("starting", "config", summary)
	spareCollector()
	service, err := startService(ctx, cfg, log, *migrateFirst)
	if err != nil && ctx.Err() != nil {
		log.Info("stopped before it had started", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	failed := untilEnd(ctx, service, hangup)
	log.Info("stopping")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.DrainTimeout())
	defer cancel()
	if err := errors.Join(failed, service.Stop(drain)); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// startService waits for a database that is away.
func startService(ctx context.Context, cfg *config.Config, log *slog.Logger, migrateFirst bool) (*app.Service, error) {
	if migrateFirst {
		err := app.UntilDatabase(ctx, log, func(ctx context.Context) error { return store.Migrate(ctx, cfg.Database.DirectURL.Reveal()) })
		if err != nil {
			return nil, err
		}
	}
	return app.Start(ctx, cfg, log)
}

// spareCollector lets the heap, which is small, grow more between two collections where a
// limit (GOMEMLIMIT) bounds it anyway: that takes a fifth off the cost of an order.
func spareCollector() {
	const percent = 400
	if os.Getenv("GOGC") == "" && debug.SetMemoryLimit(-1) < math.MaxInt64 {
		debug.SetGCPercent(percent)
	}
}

// untilEnd returns when the service is to be stopped, or has failed.
func untilEnd(ctx context.Context, service *app.Service, hangup <-chan os.Signal) error {
	for {
		select {
		case <-hangup:
			service.ReloadPrograms()
			service.ReloadCertificates()
		case <-ctx.Done():
			return nil
		case err := <-service.Failed():
			return err
		}
	}
}

func showConfig(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("config", flag.ContinueOnError)
	path := flags.String("config", "", "the configuration `file` (required)")
	if err := parse(flags, args, stderr, "config"); err != nil {
		return err
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	summary, err := cfg.Summary()
	if err != nil {
		return err
	}
	programs, err := cfg.LoadPrograms()
	if err != nil {
		return fmt.Errorf("programsFile: %w", err)
	}
	if programs.Digest != "" {
		issuers := make(map[string][]api.ProgramView)
		for _, in := range cfg.Issuers {
			if list := programs.Of(in.ID); list != nil {
				issuers[in.ID] = api.ViewPrograms(list)
			}
		}
		summary["programs"] = map[string]any{"digest": programs.Digest, "issuers": issuers}
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(summary)
}

func migrate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] != "up" && args[0] != "status" {
		_, _ = fmt.Fprintln(stderr, "usage: server migrate up|status --config file")
		return errUsage
	}
	flags := flag.NewFlagSet("migrate "+args[0], flag.ContinueOnError)
	path := flags.String("config", "", "the configuration `file` (required)")
	if err := parse(flags, args[1:], stderr, "config"); err != nil {
		return err
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	url := cfg.Database.DirectURL.Reveal()
	if args[0] == "up" {
		if err := store.Migrate(ctx, url); err != nil {
			return err
		}
	}
	list, err := store.Migrations(ctx, url)
	if err != nil {
		return err
	}
	for _, m := range list {
		state := "pending"
		if m.Applied {
			state = "applied"
		}
		_, _ = fmt.Fprintf(stdout, "%-8s %s\n", state, m.Name)
	}
	return nil
}

// restored is for a database that was set back in a way that it may not show.
func restored(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("restored", flag.ContinueOnError)
	path := flags.String("config", "", "the configuration `file` (required)")
	if err := parse(flags, args, stderr, "config"); err != nil {
		return err
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	if err := app.Restored(ctx, cfg, slog.New(slog.NewTextHandler(stderr, nil))); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(stdout, "every message is marked: D1 is asked before anything is sent")
	return nil
}

func healthcheck(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("healthcheck", flag.ContinueOnError)
	url := flags.String("url", "http://127.0.0.1:8080/readyz", "the `URL` to ask")
	timeout := flags.Duration("timeout", 3*time.Second, "how long to wait")
	if err := parse(flags, args, stderr); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, *url, nil)
	if err != nil {
		return fmt.Errorf("the URL: %w", err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", res.Status)
	}
	_, _ = fmt.Fprintln(stdout, "ready")
	return nil
}

func keygen(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("keygen", flag.ContinueOnError)
	dir := flags.String("dir", "", "the `folder` to write to (required); what exists there is kept")
	if err := parse(flags, args, stderr, "dir"); err != nil {
		return err
	}
	if _, err := local.MakeKeys(*dir); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(stdout, "keys are in %s; each file holds one value of the configuration\n", *dir)
	return nil
}
