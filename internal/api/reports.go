package api

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// maxReportDays is how many days a report may have.
const maxReportDays = 31

// reportTimeout bounds a request for a report, which may wait for another one: 503 then.
const reportTimeout = 50 * time.Second

type dailyReportView struct {
	From     string           `json:"from"`
	To       string           `json:"to"`
	TimeZone string           `json:"timeZone"`
	Data     []dailyCountView `json:"data"`
}

type dailyCountView struct {
	Date          string `json:"date"`
	CardProductID string `json:"cardProductId"`
	BatchID       string `json:"batchId,omitempty"`
	Accepted      int64  `json:"accepted"`
	Submitted     int64  `json:"submitted"`
	Produced      int64  `json:"produced"`
	Shipped       int64  `json:"shipped"`
	Failed        int64  `json:"failed"`
	Cancelled     int64  `json:"cancelled"`
	Open          int64  `json:"open"`
}

// dailyReport counts what happened to an issuer's orders, day by day.
func (s *server) dailyReport(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	from, to, zone := q.date("from"), q.date("to"), time.UTC
	q.read("timeZone", func(v string) string {
		named, err := time.LoadLocation(v)
		if err != nil || v == "" || v == "Local" {
			return "must be the IANA name of a time zone, such as Europe/Paris"
		}
		zone = named
		return ""
	})
	if !q.values.Has("from") {
		q.wrong = append(q.wrong, fault{Parameter: "from", Code: order.CodeRequired, Detail: "is required"})
	}
	if to.IsZero() {
		to = from
	}
	days := int(to.Sub(from)/(24*time.Hour)) + 1 // dates are read as UTC, where each day has 24 hours
	if days < 1 || days > maxReportDays {
		q.bad("to", fmt.Sprintf("must be 0 to %d days after from", maxReportDays-1))
	}
	if err := q.err(); err != nil {
		return err
	}
	starts := make([]time.Time, days+1)
	for i := range starts {
		starts[i] = startOfDay(from.AddDate(0, 0, i), zone)
	}
	ctx, cancel := context.WithTimeout(r.Context(), reportTimeout)
	defer cancel()
	counts, err := s.Store.DailyReport(ctx, chi.URLParam(r, "issuerId"), starts[:days], starts[days])
	if errors.Is(err, store.ErrTooSlow) {
		return errTooSlow.after("Ask for fewer days.")
	}
	if err != nil {
		return err
	}
	annotate(r.Context(), slog.Int("days", days), slog.Int("rows", len(counts)))
	view := dailyReportView{
		From: from.Format(time.DateOnly), To: to.Format(time.DateOnly), TimeZone: zone.String(), Data: make([]dailyCountView, len(counts)),
	}
	for i, c := range counts {
		view.Data[i] = dailyCountView{
			Date: from.AddDate(0, 0, c.Day).Format(time.DateOnly), CardProductID: c.CardProductID,
			Accepted: c.Accepted, Submitted: c.Submitted, Produced: c.Produced, Shipped: c.Shipped,
			Failed: c.Failed, Cancelled: c.Cancelled, Open: c.Open,
		}
		if c.BatchID != nil {
			view.Data[i].BatchID = c.BatchID.String()
		}
	}
	if wantsCSV(r) {
		view.writeCSV(w)
		return nil
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// date reads a day, as the beginning of it in UTC.
func (q *query) date(name string) (day time.Time) {
	q.read(name, func(v string) string {
		parsed, err := time.Parse(time.DateOnly, v)
		if err != nil {
			return "must be a date such as 2026-01-31"
		}
		day = parsed
		return ""
	})
	return day
}

// startOfDay is the first moment of a day in a time zone. Where the clocks are changed at
// midnight that is not 00:00, or it comes twice.
func startOfDay(day time.Time, zone *time.Location) time.Time {
	y, m, d := day.Date()
	begin := time.Date(y, m, d-1, 12, 0, 0, 0, zone) // noon is never changed
	wanted := day.Format(time.DateOnly)
	seconds := sort.Search(int(48*time.Hour/time.Second), func(n int) bool {
		return begin.Add(time.Duration(n)*time.Second).Format(time.DateOnly) >= wanted
	})
	return begin.Add(time.Duration(seconds) * time.Second)
}

// wantsCSV tells whether the caller asks for CSV by name.
func wantsCSV(r *http.Request) bool {
	for _, header := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(header, ",") {
			media, parameters, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(media), "text/csv") && strings.ReplaceAll(parameters, " ", "") != "q=0" {
				return true
			}
		}
	}
	return false
}

func (v *dailyReportView) writeCSV(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="daily-%s-%s.csv"`, v.From, v.To))
	w.Header().Set("Cache-Control", "no-store")
	out := csv.NewWriter(w)
	_ = out.Write([]string{"date", "cardProductId", "batchId", "accepted", "submitted", "produced", "shipped", "failed", "cancelled", "open"})
	for _, c := range v.Data {
		record := []string{c.Date, c.CardProductID, c.BatchID}
		for _, n := range []int64{c.Accepted, c.Submitted, c.Produced, c.Shipped, c.Failed, c.Cancelled, c.Open} {
			record = append(record, strconv.FormatInt(n, 10))
		}
		_ = out.Write(record)
	}
	out.Flush() // the caller is gone if this fails
}
