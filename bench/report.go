package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func (b *bench) printf(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

// describe tells what is compared on what.
func (b *bench) describe(ctx context.Context) error {
	settings, err := b.db.settings(ctx)
	if err != nil {
		return err
	}
	b.printf("machine: %d CPUs (%s), %s, %s\n", runtime.NumCPU(), processor(), runtime.Version(), commit(ctx, b.root))
	b.printf("PostgreSQL over TCP, for all: %s\n", settings)
	b.printf("services: %d database connections each; auth on; while accepting is measured, D1 never answers\n", b.maxConns)
	b.printf("an order: %d bytes of JSON, %d rows of %d bytes (%s)\n", len(orderText)-len(markJWE)+len(b.site.encryption.jwes[0]),
		len(b.rows.rows), b.rows.size(), b.rows)
	b.printf("each run: %s, the best of %d\n\n", b.duration, b.rounds)
	return nil
}

// printStatements prints what PostgreSQL was busy with, where that is counted.
func (b *bench) printStatements(ctx context.Context) error {
	list, err := b.db.costly(ctx)
	for _, text := range list {
		b.printf("         %s\n", text)
	}
	return err
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func commit(ctx context.Context, root string) string {
	out, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--always", "--dirty", "--exclude=*").Output()
	if err != nil {
		return "no commit"
	}
	return "commit " + strings.TrimSpace(string(out))
}

func (b *bench) progress(round int, r *result) {
	b.printf("round %d: %-18s %3d clients  %7.0f orders/s  p99 %-8s others %2.0f %%%s\n",
		round+1, r.name, r.clients, r.rate, milliseconds(r.p99), 100*r.cost.others, failures(r))
}

func failures(r *result) string {
	var list []string
	for _, text := range slices.Sorted(maps.Keys(r.errs)) {
		list = append(list, fmt.Sprintf("%d× %s", r.errs[text], text))
	}
	if len(list) == 0 {
		return ""
	}
	return "  ERRORS: " + strings.Join(list, ", ")
}

func milliseconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1e3)
}

// report prints the table and the ratios.
func (b *bench) report() {
	b.printf("\n")
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "\tclients\torders/s\tp50\tp99\terrors\tCPU/order: server\tpostgres\tgenerator\ttransactions\tWAL bytes\tallocations\tallocated\t")
	for _, r := range b.results {
		p50 := milliseconds(r.p50)
		if r.p99 == 0 && r.p50 > 0 {
			p50 = "mean " + p50
		}
		errs := 0
		for _, n := range r.errs {
			errs += n
		}
		allocations, allocated := "-", "-"
		if r.cost.allocations.objects > 0 {
			allocations, allocated = fmt.Sprintf("%.0f", r.cost.allocations.objects), fmt.Sprintf("%.1f kB", r.cost.allocations.bytes/1e3)
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%.0f\t%s\t%s\t%d\t%s\t%s\t%s\t%.3f\t%.0f\t%s\t%s\t\n", r.name, r.clients, r.rate, p50, milliseconds(r.p99), errs,
			microseconds(r.cost.server), microseconds(r.cost.postgres), microseconds(r.cost.generator),
			r.cost.transactions, r.cost.wal, allocations, allocated)
	}
	_ = w.Flush()
	b.printf("\n")
	if b.trips > 0 {
		b.printf("round trips to PostgreSQL per order, %d clients: %.2f\n", b.clients[0], b.trips)
	}
	if len(b.peaks) > 0 {
		b.printf("peak memory of the service during a batch: %s\n", strings.Join(b.peaks, "; "))
	}
	b.ratios()
	b.printFigures()
}

// printFigures prints what is no ratio.
func (b *bench) printFigures() {
	for _, f := range b.figures {
		b.printf("  %-44s %s   wanted: %s\n", f.what, f.value, f.wanted)
	}
	var most int64
	var list []string
	for _, name := range slices.Sorted(maps.Keys(b.sendingPeaks)) {
		peak := b.sendingPeaks[name]
		most = max(most, peak)
		list = append(list, fmt.Sprintf("%s %d", name, peak>>20))
	}
	if most > 0 {
		b.printf("  %-44s %d MiB (%s)   wanted: below %d MiB\n", "peak memory while sending, GOMEMLIMIT="+memoryLimit,
			most>>20, strings.Join(list, ", "), memoryWanted>>20)
	}
}

func microseconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%d µs", d.Microseconds())
}

// best is the fastest run of those names, or nil.
func (b *bench) best(names ...string) *result {
	var best *result
	for _, r := range b.results {
		if slices.Contains(names, r.name) && (best == nil || r.rate > best.rate) {
			best = r
		}
	}
	return best
}

// ratios are what all of this is for. The ratio of the CPU time that an order takes,
// generator included, hardly changes when others use the machine too.
func (b *bench) ratios() {
	command := "make bench"
	if args := os.Args[1:]; len(args) > 0 {
		command += fmt.Sprintf(" BENCHFLAGS='%s'", strings.Join(args, " "))
	}
	b.printf("ratios, made by: %s\n", command)
	for _, ratio := range []struct {
		what     string
		ours     *result
		theirs   *result
		expected string
	}{
		{"accepting / pgbench, a statement at a time", b.best("accept"), b.best(pgbenchName(false)), "at least 1.0"},
		{"accepting / pgbench, pipelined", b.best("accept"), b.best(pgbenchName(true)), "-"},
		{"accepting / River service", b.best("accept"), b.best("River service"), "at least 3"},
		{"batch / pgbench, a statement at a time", b.best("batch", "batch, gzip"), b.best(pgbenchName(false)), "at least 2.5"},
		{"batch / pgbench, pipelined", b.best("batch", "batch, gzip"), b.best(pgbenchName(true)), "-"},
		{"intake / pgbench, 100 operations at a time", b.best(nameIntakeBulk), b.best(namePgbenchBulk), "at least 0.6"},
		{"intake / pgbench, one operation at a time", b.best(nameIntakeSingle), b.best(namePgbenchSingle), "at least 0.8"},
		{"sending / bare HTTP client", b.best(nameDispatch), b.best(nameBare), "at least 0.3"},
		{"sending / bare HTTP client, D1 100 ms", b.best(nameSlowDispatch), b.best(nameSlowBare), "at least 0.95"},
		{"sending / River worker", b.best(nameDispatch), b.best(nameRiverWorker), "at least 3"},
		{"sending / River worker that keeps the record", b.best(nameDispatch), b.best(nameRiverRecord), "-"},
		{"sending from a long backlog / a short one", b.best(nameLong), b.best(nameShort), "at least 0.9"},
	} {
		if ratio.ours == nil || ratio.theirs == nil {
			continue
		}
		b.printf("  %-44s %5.2f   wanted: %-12s   by CPU time per order: %.2f\n", ratio.what, ratio.ours.rate/ratio.theirs.rate, ratio.expected,
			float64(ratio.theirs.cost.cpu())/float64(ratio.ours.cost.cpu()))
	}
}
