package main

import (
	"slices"
	"testing"
)

func TestFit(t *testing.T) {
	for _, tc := range []struct {
		width   []int
		number  string // n = a column of numbers
		columns int
		want    []int
	}{
		{[]int{10, 10}, "tt", 80, []int{10, 10}},
		{[]int{100, 10}, "tt", 80, []int{68, 10}},
		{[]int{100, 90, 10}, "ttt", 84, []int{35, 35, 10}},
		{[]int{100, 50, 10}, "ttt", 84, []int{35, 35, 10}},
		{[]int{100, 20, 10}, "ttt", 84, []int{50, 20, 10}},
		{[]int{20, 50}, "tn", 62, []int{10, 50}},
		{[]int{20, 70}, "tn", 62, []int{8, 70}}, // nothing more can be done
		{[]int{5, 5}, "tt", 8, []int{5, 5}},
	} {
		got := slices.Clone(tc.width)
		number := make([]bool, len(got))
		for i := range number {
			number[i] = tc.number[i] == 'n'
		}
		fit(got, number, tc.columns)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%v (%s) on %d columns: %v, want %v", tc.width, tc.number, tc.columns, got, tc.want)
		}
	}
}
