module unified

go 1.19
