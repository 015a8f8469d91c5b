package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"cardorder/internal/app"
	"cardorder/internal/config"
	"cardorder/internal/order"
)

const importUsage = `usage: server import --config file --issuer id [--dry-run] FILE.csv|FILE.ndjson

Takes over orders that an older system placed at D1, so that D1's notifications find
them. Nothing is sent. Each line has cardId, operationId or issuerRequestId or both, and
status; consumerId, cardProductId, distributionChannel and issuance where they are known.
It may be repeated: what is here already stays as it is.

`

// importOrders takes over orders that an older system placed.
func importOrders(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("import", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprint(stderr, importUsage)
		flags.PrintDefaults()
	}
	path := flags.String("config", "", "the configuration `file` (required)")
	issuer := flags.String("issuer", "", "the issuer's `id` (required)")
	dryRun := flags.Bool("dry-run", false, "tell what would happen, and leave everything as it is")
	name, rest := "", args
	if err := flags.Parse(args); err == nil && flags.NArg() > 0 { // the file may stand before flags
		name, rest = flags.Arg(0), append(slices.Clone(args[:len(args)-flags.NArg()]), flags.Args()[1:]...)
	} else if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if err := parse(flags, rest, stderr, "config", "issuer"); err != nil {
		return err
	}
	format := name[strings.LastIndexByte(name, '.')+1:]
	if format != "csv" && format != "ndjson" {
		_, _ = fmt.Fprintln(stderr, "a file that ends in .csv or .ndjson is required")
		flags.Usage()
		return errUsage
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was only read
	sum, err := app.Import(ctx, cfg, slog.New(slog.NewTextHandler(stderr, nil)), app.ImportJob{
		IssuerID: *issuer, File: file, CSV: format == "csv", DryRun: *dryRun,
		Refused: func(line int, faults order.Faults) {
			for _, f := range faults {
				_, _ = fmt.Fprintf(stderr, "line %d: %s (%s)\n", line, strings.TrimPrefix(f.Pointer+": "+f.Detail, ": "), f.Code)
			}
		},
	})
	note := ""
	if *dryRun {
		note = " (dry run: nothing was stored)"
	}
	_, _ = fmt.Fprintf(stdout, "read %d, imported %d, known before %d, refused %d%s\n", sum.Read, sum.Imported, sum.Known, sum.Refused, note)
	if err != nil {
		return err
	}
	if sum.Refused > 0 {
		return fmt.Errorf("%d lines were refused", sum.Refused)
	}
	return nil
}
