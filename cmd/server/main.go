// Command server is cardorder: it takes orders for payment cards from core
// banking and brings them to Thales D1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log" //nolint:depguard // to silence it
	"os"
	"os/signal"
	"slices"
	"syscall"
)

const usage = `cardorder orders payment cards at Thales D1.

Usage: server <command> [flags]

  serve         run the service
  dev           run it with a local PostgreSQL and a simulator of D1
  demo          show three orders on their way
  migrate       bring the database's schema up to date (up), or show it (status)
  import        take over orders that an older system placed at D1
  restored      say that the database was restored: D1 is asked before anything is sent
  healthcheck   ask a running service whether it is ready
  keygen        make the keys and credentials that a configuration needs
  config        check a configuration and print what is in effect, secrets masked

"server <command> -h" explains a command.
`

// command runs one of the commands until it is done or ctx ends.
type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

var commands = map[string]command{
	"serve": serve, "dev": dev, "demo": runDemo, "migrate": migrate, "restored": restored,
	"import":      importOrders,
	"healthcheck": healthcheck, "keygen": keygen, "config": showConfig,
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage ends a command whose arguments make no sense; it was explained.
var errUsage = errors.New("usage")

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) == 2 && slices.Contains([]string{"help", "-h", "-help", "--help"}, os.Args[1]) {
		_, _ = fmt.Fprint(os.Stdout, usage)
		return 0
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		_, _ = fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	// net/http writes what a peer sent out of turn to the standard logger: bytes of
	// D1, which must not be logged. Our own logs don't use it.
	log.SetOutput(io.Discard)
	// The first signal asks for an orderly end, the second ends at once.
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer restore()
	go func() {
		<-ctx.Done()
		restore()
	}()
	err := commands[os.Args[1]](ctx, os.Args[2:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return exitUsage
	}
	_, _ = fmt.Fprintf(os.Stderr, "server %s: %v\n", os.Args[1], err)
	return exitFailed
}

// parse reads a command's flags; what is left over is a mistake, and so is the
// lack of a required one.
func parse(flags *flag.FlagSet, args []string, stderr io.Writer, required ...string) error {
	flags.SetOutput(stderr)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if flags.NArg() > 0 {
		_, _ = fmt.Fprintf(stderr, "unexpected argument %q\n", flags.Arg(0))
		flags.Usage()
		return errUsage
	}
	return need(flags, stderr, required...)
}

// need explains which flags are missing.
func need(flags *flag.FlagSet, stderr io.Writer, required ...string) error {
	var err error
	for _, name := range required {
		if flags.Lookup(name).Value.String() == "" {
			_, _ = fmt.Fprintf(stderr, "--%s is required\n", name)
			err = errUsage
		}
	}
	if err != nil {
		flags.Usage()
	}
	return err
}
