// Package overload offers a kvstored, whose engine is slow or gone, more than it can do, and sees what becomes of it: how much it still does, how fast
// it says no to the rest, what memory that costs, and how soon all is well again. make overload runs it.
package overload
