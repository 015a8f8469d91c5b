package api

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A day begins with its first moment, also where the clocks are changed at midnight.
func TestStartOfDay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zone, day, want, name string }{
		{"UTC", "2026-03-29", "2026-03-29T00:00:00Z", "no changes"},
		{"Europe/Paris", "2026-03-29", "2026-03-28T23:00:00Z", "a day of 23 hours"},
		{"Europe/Paris", "2026-03-30", "2026-03-29T22:00:00Z", "the day after it"},
		{"Europe/Paris", "2026-10-25", "2026-10-24T22:00:00Z", "a day of 25 hours"},
		{"Europe/Paris", "2026-10-26", "2026-10-25T23:00:00Z", "the day after it"},
		{"America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00:00Z", "midnight does not exist"},
		{"America/Havana", "2025-11-02", "2025-11-02T04:00:00Z", "midnight comes twice"},
		{"Pacific/Kiritimati", "2026-01-01", "2025-12-31T10:00:00Z", "the first of all"},
		{"Asia/Kathmandu", "2026-01-01", "2025-12-31T18:15:00Z", "a quarter of an hour"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		day, err := time.Parse(time.DateOnly, c.day)
		if err != nil {
			t.Fatal(err)
		}
		if got := startOfDay(day, zone).UTC().Format(time.RFC3339); got != c.want {
			t.Errorf("%s: %s in %s begins at %s, want %s", c.name, c.day, c.zone, got, c.want)
		}
	}
}

func TestWantsCSV(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "application/json": false, "text/csv": true, "Text/CSV; charset=utf-8": true,
		"text/html, text/csv;q=0.9, */*;q=0.1": true, "text/csv; q=0": false, "text/csvx": false,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header.Set("Accept", accept)
		if wantsCSV(r) != want {
			t.Errorf("%q: %v", accept, !want)
		}
	}
}
