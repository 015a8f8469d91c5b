package order

import (
	"fmt"
	"time"
)

// Calendar counts in working days of the centre that makes the cards.
type Calendar struct {
	days     map[Issuance]int
	zone     *time.Location
	weekend  [7]bool // by time.Weekday
	holidays map[date]bool
	cutOff   time.Duration // of the day; 24 h when none was agreed
	readyBy  time.Duration // the same
	urgent   Urgent
	urgentBy time.Duration
}

// date is a day on the calendar, wherever.
type date struct {
	year  int
	month time.Month
	day   int
}

// dayLength is the end of a day as a time of day.
const dayLength = 24 * time.Hour

// NewCalendar returns the calendar of an SLA.
func NewCalendar(sla SLA) (*Calendar, error) {
	c := &Calendar{days: sla.WorkingDays, holidays: make(map[date]bool, len(sla.Holidays))}
	var err error
	if c.zone, err = time.LoadLocation(sla.TimeZone); err != nil {
		return nil, fmt.Errorf("loading a time zone: %w", err)
	}
	for _, day := range sla.WeekendDays() {
		c.weekend[day] = true
	}
	if c.weekend == [7]bool{true, true, true, true, true, true, true} {
		return nil, fmt.Errorf("a week needs a working day")
	}
	for _, text := range sla.Holidays {
		day, err := time.Parse(time.DateOnly, text)
		if err != nil {
			return nil, fmt.Errorf("reading a holiday: %w", err)
		}
		c.holidays[dateOf(day)] = true
	}
	c.urgent = sla.Urgent
	for _, t := range []struct {
		text string
		to   *time.Duration
	}{{sla.CutOff, &c.cutOff}, {sla.ReadyBy, &c.readyBy}, {sla.Urgent.CutOff, &c.urgentBy}} {
		if *t.to = dayLength; t.text == "" {
			continue
		}
		clock, err := time.Parse("15:04", t.text)
		if err != nil {
			return nil, fmt.Errorf("reading a time of day: %w", err)
		}
		*t.to = time.Duration(clock.Hour())*time.Hour + time.Duration(clock.Minute())*time.Minute
	}
	return c, nil
}

func dateOf(t time.Time) date {
	year, month, day := t.Date()
	return date{year, month, day}
}

// at is a time of this day in a zone. One that the clock leaps over is an hour later.
func (d date) at(timeOfDay time.Duration, zone *time.Location) time.Time {
	minutes := int(timeOfDay / time.Minute)
	return time.Date(d.year, d.month, d.day, 0, minutes, 0, 0, zone)
}

func (d date) plus(days int) date {
	return dateOf(time.Date(d.year, d.month, d.day+days, 0, 0, 0, 0, time.UTC))
}

func (d date) weekday() time.Weekday {
	return time.Date(d.year, d.month, d.day, 0, 0, 0, 0, time.UTC).Weekday()
}

func (c *Calendar) works(d date) bool { return !c.weekend[d.weekday()] && !c.holidays[d] }

// next is the first working day after d.
func (c *Calendar) next(d date) date {
	for d = d.plus(1); !c.works(d); d = d.plus(1) {
	}
	return d
}

// Due is by when the centre has to be done with a card whose order it received at a
// time. Zero when nothing was agreed for such orders.
func (c *Calendar) Due(received time.Time, issuance Issuance, urgent bool) time.Time {
	days, agreed := c.days[issuance]
	received = received.In(c.zone)
	today := dateOf(received)
	first := today
	if !c.works(today) || !received.Before(today.at(c.cutOff, c.zone)) {
		first = c.next(today)
	}
	var due time.Time
	for agreed && !due.After(received) { // what comes after today's cards are ready is for the next day
		day := first
		for range days {
			day = c.next(day)
		}
		due, first = day.at(c.readyBy, c.zone), c.next(first)
	}
	if urgent && c.urgent.Within > 0 && c.works(today) && received.Before(today.at(c.urgentBy, c.zone)) {
		if soon := received.Add(c.urgent.Within); due.IsZero() || soon.Before(due) {
			due = soon
		}
	}
	return due.UTC()
}

// dueDate reads D1's estimate: a date ends with its day at the centre. One that is in
// no time of ours says nothing.
func (c *Calendar) dueDate(text string) (time.Time, bool) {
	zone := time.UTC
	if c != nil {
		zone = c.zone
	}
	ours := func(t time.Time) bool { return t.Year() >= 2000 && t.Year() < 3000 }
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return dateOf(day).at(dayLength, zone).UTC(), ours(day)
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05.999999999-0700", "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15:04Z07:00"} {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			return t.UTC(), ours(t)
		}
	}
	return time.Time{}, false
}
