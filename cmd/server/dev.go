package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cardorder/internal/d1sim"
	"cardorder/internal/demo"
	"cardorder/internal/local"
)

// dev runs everything on this machine and stays until it is interrupted.
func dev(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("dev", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "`address` of the API; port 0 takes any free one")
	dir := flags.String("dir", ".dev", "the `folder` that keeps the data between starts")
	readyFile := flags.String("ready-file", "", "write a JSON object to this `file` once everything answers")
	databaseURL := flags.String("database-url", "", "use this database `URL` instead of starting a PostgreSQL")
	step := flags.Duration("step", 2*time.Second, "time the simulator takes for each production step")
	if err := parse(flags, args, stderr); err != nil {
		return err
	}
	folder, err := filepath.Abs(*dir)
	if err != nil {
		return fmt.Errorf("the data folder: %w", err)
	}
	if *readyFile != "" {
		// One of an earlier run would send its reader to where nobody answers.
		if err := os.Remove(*readyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the old ready file: %w", err)
		}
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	env, err := local.Start(ctx, local.Config{
		Dir: folder, Listen: *listen, DatabaseURL: *databaseURL,
		Simulator: bureau(*step), MutualTLS: true,
		Log: log, SimulatorLog: log.With("process", "simulator"),
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w; --listen chooses another address", err)
	}
	if err != nil {
		return err
	}
	greet(stdout, env.Ready, env.DataDir)
	if *readyFile != "" {
		err = writeReady(*readyFile, env.Ready)
		defer func() { _ = os.Remove(*readyFile) }()
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-env.Service.Failed():
		}
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), env.ServiceConfig().DrainTimeout())
	defer cancel()
	return errors.Join(err, env.Stop(drain))
}

// writeReady makes the file appear whole or not at all.
func writeReady(path string, ready local.Ready) error {
	content, err := json.MarshalIndent(ready, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the ready file: %w", err)
	}
	part := path + ".part"
	if err := os.WriteFile(part, append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the ready file: %w", err)
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("writing the ready file: %w", err)
	}
	return nil
}

func greet(out io.Writer, r local.Ready, data string) {
	_, _ = fmt.Fprintf(out, `
cardorder is up, with a SIMULATOR of D1: no card is made.

  API             %s
  notifications   %s
  metrics         %s
  D1 (simulator)  %s
  its management  %s
  database        %s
  data            %s

  TOKEN=%s

Place an order (4111111111111111 is Visa's published test number):

  curl -sS %s/v1/issuers/%s/orders \
    -H "Authorization: Bearer %s" \
    -H "Content-Type: application/json" \
    -H "Idempotency-Key: $(date +%%s)" \
    -d '{"cardId":"card-'$(date +%%s)'","consumerId":"consumer-1","cardProductId":"gold-debit",
         "distributionChannel":"THALES","services":{"issuance":"CREATION","delivery":"POST"},
         "paymentApplication":{"config":"visa-debit","odaKeyIndex":"01","derivationKeyIndex":"01"},
         "shipment":{"deliveryAddress":{"firstName":"Ada","lastName":"Example","line1":"1 Rue de la Paix",
                     "zipCode":"75002","city":"Paris","countryCode":"FR"}},
         "sensitiveData":{"pan":"4111111111111111","exp":"3012","name":"ADA EXAMPLE"}}'

Ctrl-C stops all of it. Orders stay; the simulator forgets its cards, so what is
under way then does not go on.

`, r.APIURL, r.NotificationsURL, r.MetricsURL, r.D1URL, r.D1ManagementURL, r.DatabaseURL, data, r.Token, r.APIURL, r.IssuerID, r.Token)
}

// runDemo shows three orders on their way, in an environment of its own or
// against a service that runs already.
func runDemo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	timeout := flags.Duration("timeout", time.Minute, "how long the orders may take")
	apiURL := flags.String("api-url", "", "`URL` of a running service; without it everything is started here")
	issuer := flags.String("issuer", local.IssuerID, "the issuer's `id` there")
	tokenFile := flags.String("token-file", "", "`file` with a bearer token for it")
	keyFile := flags.String("encryption-key-file", "", "`file` with D1's public key as a JWK")
	if err := parse(flags, args, stderr); err != nil {
		return err
	}
	if *apiURL != "" {
		if err := need(flags, stderr, "token-file", "encryption-key-file"); err != nil {
			return err
		}
		target := demo.Target{APIURL: *apiURL, IssuerID: *issuer}
		token, err := os.ReadFile(*tokenFile)
		if err != nil {
			return fmt.Errorf("reading the token: %w", err)
		}
		target.Token = strings.TrimSpace(string(token))
		if target.EncryptionKey, err = os.ReadFile(*keyFile); err != nil {
			return fmt.Errorf("reading D1's public key: %w", err)
		}
		return show(ctx, target, *timeout, stdout)
	}
	_, _ = fmt.Fprintln(stdout, "Starting PostgreSQL, a SIMULATOR of D1 (no card is made), and the service ...")
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	env, err := local.Start(ctx, local.Config{
		Simulator: bureau(300 * time.Millisecond), MutualTLS: true,
		Log: log, SimulatorLog: log,
	})
	if err != nil {
		return err
	}
	err = show(ctx, demo.Target{
		APIURL: env.Ready.APIURL, IssuerID: env.Ready.IssuerID, Token: env.Ready.Token, EncryptionKey: env.Ready.D1EncryptionKey,
		ToTheDoor: true,
	}, *timeout, stdout)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), env.ServiceConfig().DrainTimeout())
	defer cancel()
	return errors.Join(err, env.Stop(drain))
}

// bureau is a simulator whose carriers bring cards to the door.
func bureau(step time.Duration) d1sim.Settings {
	return d1sim.Settings{
		StepInterval: d1sim.Duration(step), CarrierStatuses: []string{"IN_TRANSIT", local.CarrierDelivered},
		CardOperations: []string{"CREATE"},
	}
}

func show(ctx context.Context, target demo.Target, timeout time.Duration, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return demo.Run(ctx, target, out)
}
