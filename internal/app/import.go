package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"cardorder/internal/config"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// ImportJob is a file of orders that an older system placed.
type ImportJob struct {
	IssuerID string
	File     io.Reader
	CSV      bool // else NDJSON
	DryRun   bool
	// Refused is called for each line that is not taken, with what is wrong with it.
	Refused func(line int, faults order.Faults)
}

// ImportSummary is what became of the lines of a file.
type ImportSummary struct{ Read, Imported, Known, Refused int }

// importChunk is how many orders are stored in one transaction.
const importChunk = 500

// importActor is who an order was taken over by, as its timeline has it.
const importActor = "server import"

// Import takes over the orders of a file, chunk by chunk. It goes on after a line with
// faults. What it broke off, by an error, may be repeated: what is there stays.
func Import(ctx context.Context, cfg *config.Config, log *slog.Logger, job ImportJob) (ImportSummary, error) {
	var sum ImportSummary
	if !slices.ContainsFunc(cfg.Issuers, func(in config.Issuer) bool { return in.ID == job.IssuerID }) {
		return sum, errors.New("the issuer is not configured")
	}
	programs, err := newPrograms(cfg, log)
	if err != nil {
		return sum, fmt.Errorf("programsFile: %w", err)
	}
	st, err := openStore(ctx, cfg, log, store.Config{DuplicateWindow: programs.duplicateWindow, Limits: programs.limits})
	if err != nil {
		return sum, err
	}
	defer st.Close()
	if err := checkSchema(ctx, st); err != nil {
		return sum, err
	}
	lines, err := importLines(job)
	if err != nil {
		return sum, err
	}
	var chunk []order.Import
	var numbers []int
	store := func() error {
		outcomes, err := st.Import(ctx, job.IssuerID, importActor, chunk, job.DryRun)
		if err != nil {
			return err
		}
		for i, o := range outcomes {
			switch {
			case len(o.Faults) > 0:
				sum.Refused++
				job.Refused(numbers[i], o.Faults)
			case o.Known:
				sum.Known++
			default:
				sum.Imported++
			}
		}
		chunk, numbers = chunk[:0], numbers[:0]
		return nil
	}
	for {
		line, text, err := lines()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return sum, fmt.Errorf("line %d: %w", line, err)
		}
		sum.Read++
		in, faults := order.Import{}, order.Faults{faultLine}
		if text != nil {
			in, faults = order.DecodeImport(text, programs.rules(job.IssuerID))
		}
		if len(faults) > 0 {
			sum.Refused++
			job.Refused(line, faults)
			continue
		}
		if chunk, numbers = append(chunk, in), append(numbers, line); len(chunk) == importChunk {
			if err := store(); err != nil {
				return sum, fmt.Errorf("storing lines %d to %d: %w", numbers[0], line, err)
			}
		}
	}
	if len(chunk) > 0 {
		if err := store(); err != nil {
			return sum, fmt.Errorf("storing from line %d on: %w", numbers[0], err)
		}
	}
	return sum, nil
}

// faultLine is that of a line of CSV that cannot be read.
var faultLine = order.Fault{Code: order.CodeInvalidCSV, Detail: "has another number of cells than the header, or a quote where none may stand"}

// importLines returns a function that reads one order after the other as JSON, with the
// number of its line; a line of CSV that cannot be read is nil. After the last one the
// error is io.EOF.
func importLines(job ImportJob) (func() (int, []byte, error), error) {
	file := bufio.NewReader(job.File)
	if bom, _ := file.Peek(3); string(bom) == "\xef\xbb\xbf" { // an error comes again
		_, _ = file.Discard(3)
	}
	if job.CSV {
		return importCSV(file)
	}
	return importNDJSON(file), nil
}

// maxImportLine is the longest line of NDJSON, in bytes: all members at their longest
// are far below.
const maxImportLine = 64 << 10

func importNDJSON(file *bufio.Reader) func() (int, []byte, error) {
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, maxImportLine)
	line := 0
	return func() (int, []byte, error) {
		for scanner.Scan() {
			line++
			if text := bytes.TrimSpace(scanner.Bytes()); len(text) > 0 {
				return line, text, nil
			}
		}
		if err := scanner.Err(); err != nil {
			return line + 1, nil, err
		}
		return line, nil, io.EOF
	}
}

var errImportHeader = errors.New("the first line of CSV must name the members, each once, of " + strings.Join(order.ImportMembers, ", "))

func importCSV(file *bufio.Reader) (func() (int, []byte, error), error) {
	r := csv.NewReader(file)
	r.ReuseRecord = true
	header, err := r.Read()
	if err != nil {
		return nil, errImportHeader
	}
	names := slices.Clone(header)
	r.FieldsPerRecord = -1 // one line too many or too few does not end the import
	for i, name := range names {
		if !slices.Contains(order.ImportMembers, name) || slices.Contains(names[:i], name) {
			return nil, errImportHeader
		}
	}
	var text []byte
	return func() (int, []byte, error) {
		record, err := r.Read()
		if parse, ok := errors.AsType[*csv.ParseError](err); ok {
			if parse.StartLine == parse.Line {
				return parse.Line, nil, nil
			}
			return parse.StartLine, nil, parse.Err // what an open quote swallowed is no one line; the text holds no value
		}
		if err != nil {
			return 0, nil, err
		}
		line, _ := r.FieldPos(0)
		if len(record) != len(names) {
			return line, nil, nil
		}
		text = append(text[:0], '{')
		for i, cell := range record {
			if cell == "" { // absent
				continue
			}
			if len(text) > 1 {
				text = append(text, ',')
			}
			text, _ = jsontext.AppendQuote(text, names[i])
			text = append(text, ':')
			// What is not UTF-8 gets a replacement character, which no rule lets pass.
			text, _ = jsontext.AppendQuote(text, cell)
		}
		return line, append(text, '}'), nil
	}, nil
}
